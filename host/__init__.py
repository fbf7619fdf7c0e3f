"""What a process of ours needs from its host: the state directory, keys on disk, sockets, supervision, admin socket."""
