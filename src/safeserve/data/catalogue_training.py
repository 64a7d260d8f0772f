"""The named sources of training data: demonstrations and preference pairs."""

from safeserve.data.source_types import CC_BY_NC, OWN, HubFile, Source, bianchi, github

TRAINING_SOURCES = (
    # the data that ships with the package
    Source("starter/safety", "demonstrations", "SIT: safe answers", OWN, "safety.jsonl"),
    Source("starter/look_alike", "demonstrations", "SIT: answers to look-alikes", OWN, "look_alike.jsonl"),
    Source("starter/helpful", "demonstrations", "SIT: everyday answers", OWN, "helpful.jsonl"),
    # demonstrations
    Source(
        "alpaca",
        "demonstrations",
        "SIT: everyday answers, the paper's",
        CC_BY_NC,
        "demonstrations/alpaca_random_9k.jsonl.gz",
        HubFile(
            "tatsu-lab/alpaca",
            "dce01c9b08f87459cf36a430d809084718273017",
            "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet",
        ),
        adapter="alpaca",
        kind="helpful",
        note="the hub file has 52,002 rows; the local name is a random sample of 9,229 of them",
    ),
    Source(
        "safety-tuned-llamas",
        "demonstrations",
        "SIT: safe answers, the paper's",
        CC_BY_NC,
        "demonstrations/safety_tuned_llamas_2483.jsonl.gz",
        bianchi(
            "training/safety_only_data_Instructions.json",
            "7dde08acf87f10cf74fd1b76f56538eae8e413ae8e6b09e3f7bcd97769058dbe",
        ),
        adapter="alpaca",
        kind="safety",
    ),
    Source(
        "pku-safe-chosen",
        "demonstrations",
        "SIT: safe and better answers of the paper's DPO training split",
        CC_BY_NC,
        "demonstrations/pku_safe_chosen.jsonl.gz",
        map={"response": "label"},
        kind="safety",
    ),
    Source(
        "beavertails",
        "demonstrations",
        "SIT: answers that people labelled safe",
        CC_BY_NC,
        "labels/beavertails_30k_test.jsonl.gz",
        HubFile("PKU-Alignment/BeaverTails", "8401fe609d288129cc684a9b3be6a93e41cfe678", "round0/30k/test.jsonl.gz"),
        adapter="beavertails",
        kind="safety",
        note="the test split: do not train on it what is then tested on it",
    ),
    # preference pairs
    Source(
        "paper-dpo-pairs",
        "pairs",
        "DPO: the paper's evaluation split, already filtered",
        CC_BY_NC,
        "preferences/paper_dpo_pairs.jsonl.gz",
        kind="safety",
        note="chosen is safe and better by the paper's filter; the rows themselves carry no labels",
    ),
    Source(
        "pku-saferlhf",
        "pairs",
        "DPO, reward and cost models",
        CC_BY_NC,
        "preferences/pku_saferlhf_pairs.jsonl.gz",
        HubFile("PKU-Alignment/PKU-SafeRLHF", "d79b19b2043c4b168d8d64c61ef4ba4ed1ffe2c0", "data/Alpaca-7B/train.jsonl"),
        adapter="pku",
        kind="safety",
        note="the local name is a merge of extracts without better_response_id; the hub file has every column",
    ),
    Source(
        "hh-rlhf",
        "pairs",
        "DPO, reward models: harmless-base",
        "MIT",
        "preferences/hh_harmless_base_test.jsonl.gz",
        HubFile("Anthropic/hh-rlhf", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa", "harmless-base/test.jsonl.gz"),
        adapter="hh",
        kind="safety",
    ),
    Source(
        "coconot-pref",
        "pairs",
        "DPO: against over-refusal",
        "ODC-BY",
        "preferences/coconot_pref.jsonl",
        github(
            "allenai/noncompliance",
            "939b3631f376b68b55b980876f31fdd9a7aa7a6d",
            "data/coconot_pref.jsonl",
            "3b0cddcfb72218b8c32d7c11bfded00174f2f4a3c4edfbc862640fc63f43d9c2",
        ),
        kind="look_alike",
    ),
)
