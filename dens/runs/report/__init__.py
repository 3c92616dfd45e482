"""Write a report of one run or several side by side: an HTML file without network, and PNGs."""
