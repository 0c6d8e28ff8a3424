"""Training runs: steps on the device, and a host that measures, reports, saves and stops them."""
