"""What tests share: fixtures, fakes at the market's edge, and ways to start and ask the real services."""
