"""What an installation contains: recipes, versions, optional packages."""
