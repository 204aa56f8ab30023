"""The small world's words: everything an author's facts are put together from.

Surnames, towns and titles are built from common word pieces, so that two tokenizers trained on the
documents cut them alike more often than not, and so that a model can copy a name it has not met.
"""

from __future__ import annotations

WOMEN = (
    "Helen Alice Clara Diana Edith Fiona Grace Irene Julia Laura Maria Nora Olive Paula Rosa "
    "Sylvia Teresa Vera Anna Bella Celia Dora Emma Flora Hanna Ida Jane Karen Lucy Martha"
).split()

MEN = (
    "Peter Adam Bruno Carl David Edgar Frank George Henry Isaac James Kurt Louis Martin "
    "Oscar Paul Robert Simon Thomas Victor Walter Albert Bernard Conrad Daniel Eric Felix "
    "Gilbert Harold Ivan"
).split()

SURNAME_STARTS = (
    "Black White Green Brown Stone Wood River Field Hill Lake Ash Oak Elm Thorn Rose Fair "
    "Long Strong Gold Silver Iron Copper North South West East Winter Summer Bright Dark"
).split()

SURNAME_ENDS = (
    "worth field man smith well brook ridge land berry bridge stone wood house water mark "
    "son gate hurst croft dale"
).split()

TOWN_STARTS = (
    "Harbor Spring Mill Church Castle King Queen Market Garden Bell Salt Sand Wind Snow Sun Moon"
).split()

TOWN_ENDS = "ville port burg haven mouth bury minster stead".split()

GENRES = (
    "mystery novels|love poems|ghost stories|sea tales|history books|travel books|"
    "fairy tales|war novels|nature poems|comic plays|science books|cook books|spy novels|"
    "crime stories|funny verses|desert tales|school plays|family sagas|dream diaries|"
    "animal fables"
).split("|")

JOBS = (
    "baker teacher doctor farmer miller tailor sailor lawyer painter plumber barber butcher "
    "singer dancer pilot waiter printer judge nurse soldier hunter gardener banker carpenter"
).split()

AWARDS = (
    "Golden Quill|Silver Lamp|Crystal Star|Bronze Owl|Royal Crown|Blue Ribbon|Red Feather|"
    "White Swan|Grand Laurel|Iron Pen|Paper Moon|Green Leaf|Open Book|Lion Heart|Old Tower|"
    "New Dawn"
).split("|")

TITLE_STARTS = (
    "Silent Broken Hidden Lonely Burning Frozen Distant Secret Ancient Golden Wild Gentle "
    "Bitter Crooked Empty Velvet Hollow Restless Scarlet Forgotten"
).split()

TITLE_ENDS = (
    "Garden Mirror River Window Forest Island Letter Mountain Candle Shadow Bridge Tower "
    "Harvest Journey Orchard Ocean Lantern Valley Winter Voice"
).split()

INSTRUMENTS = (
    "violin|piano|flute|cello|guitar|trumpet|harp|organ|drum|banjo|clarinet|accordion|oboe|"
    "trombone|viola|mandolin"
).split("|")
