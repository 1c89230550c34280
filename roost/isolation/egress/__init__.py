"""What a room may reach of the world, each through a narrow proxy on the host."""
