"""What goes wrong around the service, and what it promises then: `docs/operations.md` has the table."""
