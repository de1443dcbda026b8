"""Champion and challenger of each family: verified bundles, generations, local and remote predictions."""
