"""Files of a training run: metrics, figures, reports, dashboards and checks."""
