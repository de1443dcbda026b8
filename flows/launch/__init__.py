"""Launchers of the tools' servers: each wraps the tool's app in our guard, in the tool's own process."""
