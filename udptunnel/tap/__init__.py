"""Command lines: options in, service out."""
