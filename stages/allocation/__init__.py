"""Search: activation bits by timestep and layer."""
