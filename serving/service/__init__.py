"""The two BentoML services: routes, HTTP guard, typed requests and answers, health."""
