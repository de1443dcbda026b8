"""What a running service remembers: symbols, account, tiers, online weights, the ledger's writer."""
