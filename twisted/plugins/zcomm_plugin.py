from twisted.application.service import ServiceMaker

zcomm = ServiceMaker(
    "zComm",
    "zcomm.tap",
    "A live web front end and the local servers behind it.",
    "zcomm",
)
