"""Plain functions on frames and arrays: no Prefect, no BentoML, no clock."""
