"""Roles: one service each, wiring ports, links and rules together."""
