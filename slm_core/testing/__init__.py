"""Shipped stand-ins: a tiny model, a synthetic workload, scripted backends, record makers."""
