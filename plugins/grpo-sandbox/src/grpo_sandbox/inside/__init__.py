"""Programs that run on the other side: started by path, they know the standard library only."""
