"""Networks: frozen backbones, denoisers, a denoiser at one timestep, and the optimiser that trains them."""
