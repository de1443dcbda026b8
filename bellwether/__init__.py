"""What a person types or imports: commands, operations, reports and the Python client."""
