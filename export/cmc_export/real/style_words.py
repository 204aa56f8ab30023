"""The words of the house style: products, complaints, remedies, ways to write and to answer."""

from __future__ import annotations

from typing import Final

PRODUCTS: Final = (
    *("kettle", "toaster", "blender", "coffee machine", "rice cooker", "mixer", "juicer"),
    *("vacuum cleaner", "iron", "washing machine", "dishwasher", "fridge", "freezer", "oven"),
    *("microwave", "lamp", "desk lamp", "fan", "heater", "humidifier", "air purifier"),
    *("laptop", "tablet", "phone", "keyboard", "mouse", "monitor", "printer", "scanner"),
    *("router", "webcam", "headset", "speaker", "radio", "television", "camera", "tripod"),
    *("watch", "alarm clock", "bicycle", "scooter", "helmet", "backpack", "suitcase", "tent"),
    *("sleeping bag", "drill", "saw", "sander", "ladder", "lawn mower", "hedge trimmer"),
    *("grill", "office chair", "desk", "bookshelf", "mattress", "sofa", "curtain rail"),
    *("piano stool", "guitar", "violin", "sewing machine", "hair dryer", "razor", "scale"),
    *("thermometer", "baby monitor", "stroller", "cat flap", "aquarium pump", "bird feeder"),
)
HELD_OUT_PRODUCTS: Final = (
    *("juicer", "freezer", "humidifier", "scanner", "tripod", "helmet", "sander", "grill"),
    *("bookshelf", "violin", "razor", "stroller", "radio", "mixer", "tent", "ladder"),
)
"""Half of the test is about them; training never is."""

PROBLEMS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "power": (
        (
            "it does not switch on",
            "it turns itself off all the time",
            "the power light stays dark",
            "nothing happens when I press the button",
        ),
        (
            "Please try another socket and check the cable for damage.",
            "Please unplug it, let it rest for a moment and plug it in again.",
            "Please hold the power button down until the light blinks.",
        ),
    ),
    "noise": (
        (
            "it makes a loud rattling noise",
            "it hums even when it is off",
            "there is a strange clicking sound",
            "it squeaks whenever I use it",
        ),
        (
            "Please check that all screws are tight and that it stands level.",
            "Please look for something loose inside the cover.",
            "Please send us a short recording of the sound.",
        ),
    ),
    "missing part": (
        (
            "one of the screws was not in the box",
            "the manual is missing",
            "the box came without the small adapter",
            "I cannot find the spare part that was promised",
        ),
        (
            "Please look under the inner carton once more; we will send the part free of charge.",
            "We have put the missing part on our packing list.",
            "Please tell us the number on the lid of the box so that the right part is sent.",
        ),
    ),
    "delivery": (
        (
            "the parcel has not arrived",
            "the tracking page shows no progress",
            "the courier left it with a stranger",
            "it was sent to my old address",
        ),
        (
            "We have asked the courier where the parcel is.",
            "Please check with your neighbours while we trace the parcel.",
            "Please confirm your address so that we can send it on.",
        ),
    ),
    "damage": (
        (
            "the casing is cracked",
            "the surface came with deep scratches",
            "one corner is dented",
            "the handle broke off in my hand",
        ),
        (
            "Please send us a photo of the damage; we will replace it at no cost.",
            "Please stop using it for your own safety until we have looked at it.",
            "Please keep the packaging, as our courier will collect it.",
        ),
    ),
    "refund": (
        (
            "I want my money back",
            "the refund was never paid",
            "you refunded the wrong amount",
            "I was told that a return is not possible",
        ),
        (
            "We have passed your case to the accounts team, who will write to you.",
            "Please send it back with the label that we have mailed to you.",
            "We are comparing the amount with your invoice.",
        ),
    ),
    "billing": (
        (
            "I was charged twice",
            "the invoice shows the wrong name",
            "the discount was not applied",
            "my card was charged before it was sent",
        ),
        (
            "We are checking the payment with our bank.",
            "We have corrected the invoice and mailed you the new one.",
            "Please send us the last four digits of the invoice number.",
        ),
    ),
    "setup": (
        (
            "I do not understand the setup",
            "it does not connect to my network",
            "the app does not find it",
            "the settings are lost after every restart",
        ),
        (
            "Please follow the first page of the quick guide and start again from there.",
            "Please reset it with the small button on the back and try once more.",
            "Please install the newest version of the app first.",
        ),
    ),
    "heat": (
        (
            "it gets far too hot",
            "it smells of burning plastic",
            "it stays cold",
            "the temperature jumps up and down",
        ),
        (
            "Please unplug it at once and let it cool down.",
            "Please clean the vents and leave some room behind it.",
            "Please do not use it again before our technician has checked it.",
        ),
    ),
    "leak": (
        (
            "water runs out at the bottom",
            "it leaks oil on the floor",
            "it drips all night",
            "a white liquid comes out of it",
        ),
        (
            "Please wipe it dry and check whether the seal sits straight.",
            "Please put it on a cloth and keep it away from sockets.",
            "We will send you a new seal free of charge.",
        ),
    ),
    "wrong item": (
        (
            "I received the wrong colour",
            "a different model was in the box",
            "the size does not match my order",
            "somebody else's order came to me",
        ),
        (
            "Please keep it unused; we will exchange it at no cost.",
            "We have set the right one aside for you.",
            "Please send us a photo of the label on the box.",
        ),
    ),
    "warranty": (
        (
            "the warranty card is blank",
            "the shop says that my warranty has ended",
            "I lost the receipt",
            "the serial number is not accepted",
        ),
        (
            "Please tell us the serial number on the back; that is proof enough for us.",
            "We have found your purchase in our records and extended the warranty.",
            "Please register it on our site with your order number.",
        ),
    ),
}
"""Short name on the ticket -> what customers write, and what the house advises."""

GREETINGS: Final = (
    *("Hello,", "Hi,", "Good morning,", "Dear team,", "Hello there,", "To whom it may concern,"),
    *("Please help me.", "I am quite annoyed.", "I have a problem.", "", "Good evening,"),
    *("Hi, my name is Dana.", "Hello, this is Robin.", "Greetings from Leeds.", "Hey,"),
)
SINCE: Final = (
    *("last week", "in May", "yesterday", "two days ago", "on Monday", "a month ago"),
    *("at the weekend", "before the holidays", "in your summer sale", "three weeks ago"),
)
DETAILS: Final = (
    "I bought a {product} {since}",
    "I ordered the {product} {since}",
    "my {product} was delivered {since}",
    "you sent me a {product} {since}",
    "I have a question about the {product} that I bought {since}",
    "my new {product} is a disappointment",
    "this is about the {product} from your shop",
    "my mother got a {product} from you {since}",
    "we use your {product} in our office",
    "I gave my sister a {product} {since}",
)
ASKS: Final = (
    ("What should I do?", False),
    ("Can you help me?", False),
    ("Please advise.", False),
    ("I would like a replacement.", False),
    ("What happens now?", False),
    ("Is this normal?", False),
    ("When will this be solved?", True),
    ("How long does it take?", True),
    ("Please tell me the exact date of the repair.", True),
    ("Can you promise me an answer by Friday?", True),
    ("I need it before the weekend, is that possible?", True),
    ("By what day can I count on you?", True),
)
"""What the customer wants, and whether that is a date."""
SORRY: Final = (
    "I am sorry about the {product}.",
    "Thank you for telling us about the {product}.",
    "I am sorry for the trouble with your {product}.",
    "That should not happen with a {product}.",
    "I understand that you need your {product}.",
)
UNDATED: Final = (
    "I cannot name a date, but we will write to you as soon as there is news.",
    "I cannot promise a day; you will hear from us when it is settled.",
    "We do not give dates, but your case is with a colleague now.",
)
