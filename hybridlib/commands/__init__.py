"""What the console command does beyond calling a room: estimates, a folder of images scored, a plan, the explorer."""
