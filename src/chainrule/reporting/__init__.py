"""Tables, reports and dashboards from records."""
