"""Write made-up English sentences without labels, for the workflow `distil`.

The sentences are made from templates and lists of names that were written for this project. Where the names
stand is not written anywhere: the teacher must find them.
"""

import random
from pathlib import Path
from typing import List

import typer

# Lists, divided by semicolons.
LISTS = {
    "first": "Maren;Tobias;Ilse;Ruben;Aino;Wanda;Callum;Priya;Nuno;Selma;Idris;Lotte;Kofi;Yara;Emeka;"
    "Brigid;Sione;Marit;Dario;Hanne;Tomasz;Leila;Oskar;Nadia;Fergus;Chiara;Anders;Zuri;Pavel;"
    "Noor;Gareth;Mirela",
    "last": "Holm;Okafor;Brandt;Silva;Maran;Quist;Petrov;Adeyemi;Lindgren;Tanaka;Moreau;Fenwick;"
    "Hollis;Castellan;Varga;Oyelaran;Stroud;Keller;Nakamura;Pritchard;Duarte;Sorley;Weiss;"
    "Aalto;Bellamy;Rashid;Thorne;Kovacs;Mbeki;Lund;Ferreira;Ashdown",
    "place": "Leeds;Bergen;Osaka;Lyon;Porto;Ghent;Cork;Trieste;Kiel;Uppsala;Lagos;Quito;Hobart;Graz;"
    "Tampere;Galway;Cape Verde;Lake Orrin;Port Ellery;Norway;Kenya;Saint Maud;Upper Varn;"
    "Mount Kessel;the Tarn Valley;Brackwater;Estonia;Halden Bay;Old Kirkby;Westmere;Peru;"
    "the River Lode",
    "name": "Northgate;Brightwell;Korvex;Aldane;Merrow;Silverline;Tavistock;Ravel;Orrery;Quillon;"
    "Harrow;Zephyr;Castor;Fennimore;Greystone;Lumina;Parallax;Sable;Ironbridge;Verity;Calder;"
    "Hawthorn;Nimbus;Opaline",
    "kind": "Bank;Airways;Motors;University;Hospital;Institute;Foundation;Foods;Energy;Records;Press;"
    "Insurance;United;Rovers;Court;Ministry of Ports;Research Council;Ledger Services;"
    "Textiles;Shipping",
    "thing": "S4;Mini;220i;Pro;QuietBand;One;Max 3;Duo;Kettle;Tab;Air 7;Cutter;Pad;Lens;X12;Scanner",
    "happening": "Festival;Cup;Marathon;Book Fair;Open;Summit;Forum;Regatta;Games;Prize Night;Conference;"
    "Parade;Classic;Convention;Trophy",
    "title": "The Salt Road;Voices of the Harbour;A Winter Without Snow;The Last Ferry;"
    "Letters to Nobody;Under the Copper Sky;The Clockmaker's Daughter;Nine Bridges;"
    "Songs for an Empty House;The Glass Orchard;What the Tide Left;Midnight at the Mill;"
    "The Quiet Engine;Blue Ladder;A Map of Small Rooms;The Weight of Feathers;"
    "North of Morning;The Paper Boat",
    "day": "Monday;Tuesday;Wednesday;Thursday;Friday;Saturday;Sunday",
}

TEMPLATES = """
{person} of {org} told reporters in {place} that talks would resume after {day}.
{org} has closed its office in {place}, and {last} will move to {place2}.
Shares in {org} fell by {n} per cent after {person} resigned.
The ferry from {place} was {n} minutes late, and nobody from {org} said why.
Rescuers found {person} near {place} after {n} hours in the cold.
{last}, who grew up in {place}, won the {event} at the first attempt.
The {event} will be held in {place} next year, the organisers said.
{org} beat {org2} by two goals in {place}, with both scored by {last}.
{person} withdrew from the {event} with a sore knee.
After {n} laps {last} led the {event} by a second.
my {product} died after {n} weeks, {org} support is useless
anyone in {place} selling a {product}? asking for a friend
just finished {work} and I am not okay
{first} lent me {work} and now I can't sleep
heading to the {event} with {first} and {first2}, see you there
so {org} cancelled my flight to {place} again
The {product} is lighter than the {product2}, but its battery lasts half as long.
I returned the {product} after {n} days because the hinge broke.
{org} sells the {product} in three colours, all of them grey.
Compared with last year's model, the {product} is louder and cheaper.
Dear {first}, thank you for the copy of {work}, which arrived on {day}.
Hi {first}, could you send the invoice for the {product} to {org} before {day}?
Kind regards, {person}, {org}, {place}
{first} and I will be in {place} from {day}, so please write to {person2} instead.
Please find attached the minutes of the meeting with {org}.
The court in {place} ordered {org} to pay {last} {n} thousand euros.
Counsel for {person} argued that {org} had never read the contract.
The witness, {person}, said she had seen the {product} on the table.
In {org} v. {last}, the judge refused to hear the appeal.
Researchers at {org} measured the ice on {place} with a {product}.
According to {last} and {last2}, the effect disappears after {n} days.
The samples were sent from {place} to {org} and analysed with the {product}.
{person} presented the results at the {event} in {place}.
The patient, a teacher from {place}, was treated at {org} for {n} days.
Dr {last} of {org} advised against the {product}.
The trial, led by {person}, was paid for by {org}.
{first} put {work} back on the shelf and looked out over {place}.
"You should never have left {place}," said {first}.
{last} remembered the {event}, the rain, and the long road to {place}.
In {work}, {person} tells the story of a lighthouse keeper.
{work} by {person} won the prize for best novel at the {event}.
The film {work} was shot in {place} in {n} days.
{person} sang three songs from {work} at the {event}.
{org} will publish {work} on {day}.
They drove from {place} to {place2} in an old {product}.
{org} and {org2} want to merge, but {place} objects.
The mayor of {place}, {person}, opened the {event} with a short speech.
{n} people were hurt when a train left the rails near {place}.
A spokesman for {org} declined to comment.
{person} joined {org} from {org2} on {day}.
Nobody knew why the lights had gone out at {n} o'clock.
The committee will meet again on {day} to discuss the budget.
He said nothing, put the keys on the table and left.
Stir for {n} minutes, then leave it in a warm place.
The results were not significant in the second group.
i can't believe it is only {day}
The parties agreed to share the costs equally.
Please bring your own towel and something to eat.
The battery is good for about {n} hours, in my experience.
The defendant did not appear, and the hearing was adjourned.
It rained for {n} days, and then the roof gave way.
We apologise for the delay and thank you for your patience.
""".strip().splitlines()


def main(
    output: Path = typer.Argument(..., help="A text file with one sentence per line"),
    n: int = typer.Option(1500, "--n", min=1, help="Number of sentences"),
    seed: int = typer.Option(0, "--seed", help="Other sentences for another number"),
) -> None:
    """Write made-up sentences, all of them different."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(make_sentences(n, seed)) + "\n", encoding="utf8")
    typer.echo(f"✔ {n} sentences: {output}")


def make_sentences(n: int, seed: int) -> List[str]:
    """RETURNS (List[str]): Different sentences."""
    rng = random.Random(seed)
    lists = {key: words.split(";") for key, words in LISTS.items()}

    def pick(key: str) -> str:
        return rng.choice(lists[key])

    sentences: List[str] = []
    seen = set()
    while len(sentences) < n:
        names = {}
        for k in ("", "2"):
            first, last = pick("first"), pick("last")
            names |= {f"first{k}": first, f"last{k}": last, f"person{k}": f"{first} {last}"}
            names[f"place{k}"] = pick("place")
            names[f"org{k}"] = f"{pick('name')} {pick('kind')}"
            names[f"product{k}"] = f"{pick('name')} {pick('thing')}"
        names["event"] = f"{pick(rng.choice(['name', 'last']))} {pick('happening')}"
        names |= {"work": pick("title"), "day": pick("day"), "n": str(rng.randint(2, 60))}
        template = rng.choice(TEMPLATES)
        if rng.random() < 0.3:  # two sentences
            template += " " + rng.choice(TEMPLATES)
        sentence = template.format(**names)
        if sentence not in seen:
            seen.add(sentence)
            sentences.append(sentence)
    return sentences


if __name__ == "__main__":
    typer.run(main)
