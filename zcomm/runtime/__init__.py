"""The code close to the insides of Twisted and Python: reactor, threads, signals, standard output."""
