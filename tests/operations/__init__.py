"""What an operator is given: rules, dashboards, images, manifests. Each is run by the tool that reads it."""
