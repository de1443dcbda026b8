"""The tools' servers, each started in a process of its own with our guard around its app."""
