"""Refusals that need no first person in English: policy messages, flat denials, and set phrases of other languages.

All expect lower-case, normalised text (see ``text.normalise``), one sentence at a time, as ``refusal_rules`` does.
"""

from __future__ import annotations

import re

_RULES = r"(?:\w+ )?(?:polic(?:y|ies)|guidelines?|rules|programming|safety (?:settings|training|filters?))"
_ASKED = r"(?:this|that|the|your) (?:\w+ )?(?:request|prompt|message|question|query|content|input)"

POLICY_MESSAGE = re.compile(
    # The sentence ends there: "Your request was denied by the bank because ..." is an answer.
    rf"^\W*{_ASKED} (?:was|is|has been|cannot be|can't be|could not be) (?:\w+ )?"
    r"(?:blocked|denied|refused|declined|rejected|filtered|flagged|completed|fulfilled|processed|answered)\b"
    rf"(?: (?:by|under|due to|because of|for violating|as it (?:violates|breaks)) "
    rf"(?:my|our|the|openai's) {_RULES})?\W*$"
    rf"|^\W*{_ASKED} (?:violates|breaks|breaches|goes against|is against|conflicts with) (?:my|our|the|openai's) "
    rf"{_RULES}\b"
    r"|^\W*(?:request|content|access|response|answer|output) (?:denied|refused|blocked|withheld|removed|filtered|"
    r"not (?:allowed|available|permitted))\b[^.]{0,40}\W*$"
)
"""What a server or a filter says in the model's place."""

MY_RULES_FORBID = re.compile(
    rf"\b(?:my|our) {_RULES} (?:prevents?|prohibits?|forbids?|stops?|bars?|(?:does|do) not (?:allow|permit|let)|"
    r"(?:doesn't|don't) (?:allow|permit|let)|won't (?:allow|permit|let)) (?:me|us)\b"
    r"|\b(?:is|this is|it's|that's) (?:\w+ )?(?:beyond|outside|not (?:within|among)) (?:of )?what "
    r"(?:i'm|i am|we're|we are|i can|we can)\b"
    r"|\bit would be (?:\w+ )?(?:irresponsible|unethical|wrong|inappropriate|illegal|reckless) (?:of|for) me to\b"
)
"""Its own rules or its own conscience forbid it."""

FLAT_DENIAL = re.compile(
    r"^\W*(?:absolutely|certainly|definitely|of course) not\W*$"
    r"|^\W*(?:no|nope|no way|never|not a chance|not happening|out of the question)(?:[,.!]? (?:i'm |i am )?"
    r"(?:not (?:doing|going to do|happening)[^.]{0,20}|never))?\W*$"
    r"|^\W*(?:sorry,? |but )?i(?:'d| would)(?: much)? (?:rather not|prefer not to)\b(?! (?:wait|know|think|be)\b)"
    r"|, so (?:no|the answer is no)\W*$"
    r"|^\W*(?:let's|let us|how about we) (?:please )?(?:talk|speak|chat) about (?:something|anything) else\b"
)
"""Says no and nothing else, where something was asked for."""

OTHER_LANGUAGES = re.compile(
    # Spanish, Portuguese
    r"\bno (?:puedo|podemos|podré) (?:ayudar(?:te|le|lo|los|os)?|proporcionar|ofrecer|responder|cumplir|asistir|"
    r"hacer eso|darte)\b|\bme niego a\b"
    r"|\bnão (?:posso|podemos|vou) (?:(?:te |lhe |o )?ajudar|fornecer|responder|atender|oferecer|fazer isso)"
    # French
    r"|\bje (?:ne peux pas|ne suis pas en mesure de|refuse de|ne vais pas) (?:vous |t'|te |y )?(?:aider|fournir|"
    r"répondre|donner|assister|proposer|faire)"
    # German
    r"|\b(?:dabei|damit|das|ihnen|dir|hier|leider|ich) (?:\w+ )?(?:kann|darf|werde|möchte) ich (?:\w+ ){0,4}nicht "
    r"(?:helfen|unterstützen|beantworten|weiterhelfen|tun)|\bich (?:kann|darf|werde|möchte) (?:\w+ ){0,6}"
    r"(?:nicht|keine \w+) (?:helfen|unterstützen|beantworten|weiterhelfen|geben|tun)"
    r"|\b(?:dabei|damit|hierbei) (?:kann|darf|werde) ich (?:\w+ ){0,3}nicht (?:weiter)?helfen"
    # Italian, Dutch
    r"|\bnon (?:posso|possiamo) (?:aiutar(?:ti|la|vi|e)?|fornire|rispondere|assister(?:ti|la|e)|farlo)"
    r"|\b(?:daar|hier)(?:bij|mee)? kan ik (?:\w+ ){0,3}niet (?:bij |mee )?helpen"
    r"|\bik kan (?:\w+ ){0,4}niet (?:bij |mee )?helpen"
    # Chinese, Japanese, Russian
    r"|我(?:无法|不能|不会)(?:为您|为你|向您|向你)?(?:提供|帮助|协助|回答|满足)"
    r"|(?:お手伝い|お答え|提供|対応)(?:することは|は)?(?:でき|いたしかね)(?:ません|ます)"
    r"|\bя не (?:могу|буду) (?:вам |тебе |с этим )?(?:помочь|помогать|предоставить|ответить)"
)
"""The usual first-person refusals of nine other languages; everything else in them is read as an answer."""

ABOUT_ITSELF = re.compile(
    r"^\W*(?:no,? |sorry,? )?i (?:can't|cannot|won't|will not) (?:see|hear|feel|smell|taste|touch|only)\b"
)
"""Says what it is or does, and declines nothing: "I can't see you", "I will not only ... but also"."""
