from twisted.application.reactors import Reactor

zcomm_reactor = Reactor(
    "zcomm", "zcomm.runtime.reactor", "Twisted's asyncio reactor over uvloop, with a shorter way to a read."
)
