"""What flows and commands share: the installation, promotion, the process table, market access, progress."""
