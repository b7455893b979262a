"""What things cost, measured. Nothing in here is a test: figures depend on the machine."""
