"""What people type wrong: each command ends with one line that names the place and the remedy, and changes no file.

A line of `CASES` is a command and, behind `->`, a part of the answer. No model is loaded before it is given.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Shown

from debias.data import leakage
from debias.models.base import BaseModel

Run = Callable[..., Shown]

# Hydra's words: keys, groups, grammar, flags.
WORDS = """
rnu -> unknown verb 'rnu' (did you mean 'run'?)
run data.bais=gender -> unknown key 'data.bais' (did you mean 'data.bias'?)
run trainig.lr=1 -> unknown key 'trainig.lr' (did you mean 'training.lr'?)
run modle=gpt2 -> unknown key 'modle' (did you mean 'model'?)
run data=targetd -> there is no data=targetd (did you mean 'targeted'?)
run eval=[steroset] -> there is no eval=steroset (did you mean 'stereoset'?)
run adapter=loar -> (did you mean 'lora'?)
run logger=csvv -> (did you mean 'csv'?)
run hydra/launcher=slurm -> choose one of: basic, joblib
run adapter=null -> there is no adapter=null; choose one of: adalora, bottleneck
run eval=null -> there is no eval=null; choose one of: ability
run data= -> there is no data=; choose one of: all
run llm=local -> does not use llm=... with these settings; data=generated and `debias generate` do
run data=general data.path=x -> data.path is not a key of data=general, only of other options
run eval=[perplexity] eval.crows_pairs.limit=4 -> is not a key of eval=[perplexity], only of other options; leave it out
run data=triplets -> data.bias must be set: add data.bias=VALUE
run data=triplets data.bias=age -> data.path must be set: add data.path=VALUE
run -m seed=1,2 --cfg job -> --cfg and --info show one config; leave -m out
run --verbos -> unrecognized arguments: --verbos
run adapter.rr=8 -> unknown key 'adapter.rr' (did you mean 'adapter.r'?)
run +adapter.rr=8 -> unknown key 'adapter.rr' (did you mean 'adapter.r'?)
run +seeed=2 -> unknown key 'seeed' (did you mean 'seed'?)
run +training.epoch=3 -> (did you mean 'training.epochs'?)
run +outcome.max_lms_drp=1 -> (did you mean 'outcome.max_lms_drop'?)
run +eval.stereset.limit=3 -> (did you mean 'eval.stereoset'?)
run data=generated generate.nn=3 -> unknown key 'generate.nn' (did you mean 'generate.n'?)
evaluate seed=3 -> unknown key 'seed'
evaluate data=targeted -> does not use data=...
generate generate.per_cal=3 -> (did you mean 'generate.per_call'?)
generate llm=opnai -> (did you mean 'openai'?)
generate llm=ollama -> llm.model must be set: add llm.model=VALUE
run data.path=a,b.jsonl -> add -m to run each, or write one text as 'data.path='"'"'a,b.jsonl
run d?ta=3 -> cannot be read; write KEY=VALUE, and text in quotes
run -m seed=1,1 -> would share the folder outputs/run/seed-1
run -m overwrite=true,false -> would share the folder outputs/run/default
generate strategy=general bias=age -> chooses the biases by itself: leave bias out
doctor -> name at least one file: debias doctor FILE...
doctor own.jsonl fixx=true -> unknown key 'fixx' (did you mean 'fix'?)
doctor --jsn own.jsonl -> unrecognized arguments: --jsn
export -> adapter.path must be set: add adapter.path=VALUE
sweep nothing -> there is no sweep 'nothing'; choose one of: adapters
show adapter.pth=x -> unknown key 'adapter.pth' (did you mean 'adapter.path'?)
show show.sample=3 -> (did you mean 'show.samples'?)
show --smaples -> unrecognized arguments: --smaples
run balance=pronuns -> (did you mean 'pronouns'?)
generate judge=lm -> (did you mean 'llm'?)
ls modle -> unknown group 'modle' (did you mean 'model'?)
report nowhere -> nowhere does not exist
report . -> no finished run below .
"""
# Values of another type or out of their range, told before anything is read.
VALUES = """
run seed=a -> seed='a' must be a whole number from 0 to 4294967295
run seed=-1 -> seed=-1 must be a whole number from 0
run seed=99999999999 -> to 4294967295
run seed=1.5 -> seed=1.5 must be a whole number
run seed=null -> seed=null must be a whole number
run threads=all -> threads='all' must be a whole number from 1 to 1024 or null
run threads=0 -> threads=0 must be a whole number from 1
run threads=100000 -> to 1024 or null
run overwrite=no -> overwrite='no' must be true or false
run overwrite=off -> overwrite='off' must be true or false
run overwrite=maybe -> overwrite='maybe' must be true or false
run overwrite=1 -> overwrite=1 must be true or false
run name= -> name='' must be the name of a folder below outputs
run name=[a,b] -> name=['a', 'b'] must be text
run training={lrr:3} -> unknown key 'training.lrr' (did you mean 'training.lr'?)
run training=3 -> training=3 must be a section with lr, epochs
run training.schedule=liner -> training.schedule='liner' is unknown (did you mean 'linear'?)
run training.warmup=2 -> training.warmup=2 must be a number from 0 to 1
run training.warmup=-0.1 -> must be a number from 0 to 1
run training.lr=fast -> training.lr='fast' must be a number more than 0
run training.lr=0 -> training.lr=0 must be a number more than 0
run training.lr=nan -> training.lr=nan must be a number more than 0
run training.lr=inf -> training.lr=inf must be a number more than 0
run training.epochs=0 -> training.epochs=0 must be a whole number of 1 or more
run training.epochs=1.5 -> training.epochs=1.5 must be a whole number of 1 or more
run training.batch_size=big -> training.batch_size='big' must be a whole number
run training.weight_decay=-1 -> must be a number of 0 or more
run training.start_token=yes -> training.start_token='yes' must be true or false
run training.retention=-1 -> must be a number of 0 or more
run training.num_neutral=-1 -> must be a whole number of 0 or more
run neutral=own neutral.start=[1,2] -> neutral.start
run neutral=own neutral.start=[] -> has no beginnings; name some, or set it to null for none
run training.gradient_checkpointing=maybe -> must be true or false
run training.watch=3 -> must be a section with every, limit
run training.watch.every=0 -> must be a whole number of 1 or more, or null
run training.watch.stop_at=200 -> must be a number from 0 to 100 or null
run training.watch.patience=3 -> needs training.watch.every=STEPS
run scoring.precision=16 -> scoring.precision=16 is unknown
run scoring.token_budget=0 -> choose auto or a whole number of 1 or more
run outcome.max_lms_drop=abc -> outcome.max_lms_drop='abc' must be a number of 0 or more
run outcome.max_lms_drop=-1 -> must be a number of 0 or more
run outcome.max_perplexity_ratio=null -> must be a number more than 0
run show.samples=-1 -> show.samples=-1 must be a whole number of 0 or more
run show.longest=0 -> show.longest=0 must be a whole number of 1 or more
run training.balance=-1 -> training.balance=-1 must be a number of 0 or more
run training.num_pairs=few -> training.num_pairs='few' must be a whole number of 0 or more
show show.samples=two -> show.samples='two' must be a whole number of 0 or more
show show.samples=0 -> show.samples=0 leaves nothing to show
show show.seed=-1 -> show.seed=-1 must be a whole number from 0
show threads=0 -> threads=0 must be a whole number from 1
show adapter.path=[a,b] -> adapter.path=['a', 'b'] must be text or null
show adapter.path=none hello -> none is not an adapter folder
show prompts=none.txt -> none.txt: cannot read the prompts
evaluate threads=0 -> threads=0 must be a whole number from 1
evaluate data.bias=[a] -> data.bias=['a'] must be text
evaluate adapter.combine=mean -> adapter.combine='mean' is unknown; choose stack, average, sum or null
evaluate adapter.weights=heavy -> must be a list such as [A,B], each a number of 0 or more, or null
evaluate adapter.combine=average adapter.weights=[a] -> adapter.weights=['a'] must be a list
generate seed=-1 -> seed=-1 must be a whole number from 0
generate bias=5.5 -> quote what is meant as text: "bias='...'"
generate bias= -> bias is empty: name one, as in bias=age
generate bias=[] -> bias is empty: name one, as in bias=age
generate generate.n=0 -> generate.n=0 must be a whole number of 1 or more
generate generate.n=-3 -> generate.n=-3 must be a whole number of 1 or more
generate generate.n=many -> generate.n='many' must be a whole number of 1 or more
generate generate.n=1.5 -> generate.n=1.5 must be a whole number of 1 or more
generate +generate.nn=3 -> unknown key 'generate.nn' (did you mean 'generate.n'?)
generate generate.per_call=0 -> generate.per_call=0 must be a whole number of 1 or more
generate generate.patience=none -> generate.patience='none' must be a whole number of 1 or more
generate generate.max_filtered=0 -> must be a whole number of 1 or more
generate generate.expected_yield=0 -> must be a number more than 0 and at most 1
generate generate.similarity=0.1 -> generate.similarity=0.1 must be a number from 0.3 to 1
generate generate.cap_target=2 -> generate.cap_target=2 must be a number more than 0 and at most 1
generate generate.cap_attribute=0 -> generate.cap_attribute=0 must be a number more than 0 and at most 1
generate generate.cap_opening=-1 -> generate.cap_opening=-1 must be a number more than 0 and at most 1
generate generate.benchmarks=no -> generate.benchmarks='no' must be true or false
generate generate.dry_run=yes -> generate.dry_run='yes' must be true or false
generate generate.licence=[a] -> generate.licence=['a'] must be text
generate generate.min_words=0 -> generate.min_words=0 must be a whole number of 1 or more
generate generate.max_words=3 -> is less than generate.min_words=5
generate generate.against=a.jsonl -> generate.against='a.jsonl' must be a list such as [A,B], each text
generate generate.against=[none.jsonl] generate.dry_run=true -> none.jsonl: cannot read this file
generate llm.temprature=1 -> unknown key 'llm.temprature' (did you mean 'llm.temperature'?)
generate +llm.temprature=1 -> unknown key 'llm.temprature' (did you mean 'llm.temperature'?)
generate llm.temperature=hot -> llm.temperature='hot' must be a number of 0 or more, or null
generate llm.temperature=-1 -> llm.temperature=-1 must be a number of 0 or more, or null
generate llm.top_p=2 -> llm.top_p=2 must be a number more than 0 and at most 1 or null
generate llm.seed=x -> llm.seed='x' must be a whole number or null
generate llm.max_tokens=0 -> llm.max_tokens=0 must be a whole number of 1 or more
generate llm.max_tokens=1.5 -> llm.max_tokens=1.5 must be a whole number of 1 or more
generate llm.timeout=0 -> llm.timeout=0 must be a number more than 0
generate llm.timeout=long -> llm.timeout='long' must be a number more than 0
generate llm.max_retries=-1 -> llm.max_retries=-1 must be a whole number of 0 or more
generate llm.concurrency=0 -> llm.concurrency=0 must be a whole number of 1 or more
generate llm.max_cost_usd=lots -> llm.max_cost_usd='lots' must be a number of 0 or more, or null
generate llm.max_cost_usd=-1 -> llm.max_cost_usd=-1 must be a number of 0 or more, or null
generate llm.price_prompt=-1 -> llm.price_prompt=-1 must be a number of 0 or more, or null
generate llm.batch=maybe -> llm.batch='maybe' must be true or false
generate llm.batch_price_factor=-1 -> llm.batch_price_factor=-1 must be a number of 0 or more
generate llm.adapt=no -> llm.adapt='no' must be true or false
generate llm.share=0 -> llm.share=0 must be a number more than 0
generate llm=[openai:0,local] -> llm.share=0 must be a number more than 0
generate llm=[openai,local] llm.others.local.timeout=0 -> llm.others.local.timeout=0 must be a number more than 0
generate llm.structured=xml -> llm.structured='xml' is unknown; choose json_schema, json_object or text
generate llm.structured=json_shema -> (did you mean 'json_schema'?)
generate llm.system_role=boss -> choose system or user
generate llm.max_tokens_name=max -> choose max_tokens or max_completion_tokens
generate llm.schema_drops=minLength -> llm.schema_drops='minLength' must be a list such as [A,B], each text
generate llm.prices=cheap -> llm.prices='cheap' must be a mapping such as {NAME: VALUE}
generate llm.prices={m:{prompt:1}} -> llm.prices.m.completion must be set
generate "llm.prices={gpt-4.1: 3}" -> llm.prices.gpt-4.1=3 must be a section with prompt, completion, date
generate llm.prices.gpt-4.1=3 -> llm.prices.gpt-4.1=3 must be a section with prompt, completion, date
generate llm.prices.gpt-4.1.prompt=3 -> llm.prices.gpt-4.1.completion must be set: add llm.prices.gpt-4.1.completion=
generate +llm.prices.gpt-4.1.promt=3 -> (did you mean 'llm.prices.gpt-4.1.prompt'?)
generate llm.prices.gpt-5.4-nano.prompt=x -> llm.prices.gpt-5.4-nano.prompt='x' must be a number of 0 or more
generate llm.prices.qwen3:8b.prompt=1 -> llm.prices.qwen3:8b.completion must be set
generate judge.llm=openai -> judge.llm is set, but judge=none asks nobody; add judge=llm
generate counterparts.llm=openai -> counterparts.llm is set, but counterparts=none asks nobody; add counterparts=llm
generate +llm.prices={m:{prompt:1}} -> llm.prices.m.completion must be set
generate llm.extra_body={stream:true} -> llm.extra_body.stream is not supported
generate llm=local llm.server.threads=0 -> llm.server.threads=0 must be a whole number of 1 or more
generate llm=local llm.server.context=big -> llm.server.context='big' must be a whole number of 1 or more
generate llm=local llm.server.thread=2 -> (did you mean 'llm.server.threads'?)
generate llm=local +llm.server.thread=2 -> (did you mean 'llm.server.threads'?)
generate preview=0 -> preview=0 must be a whole number of 1 or more, or null
generate judge=llm judge.attempts=0 -> judge.attempts=0 must be a whole number of 1 or more
generate judge=llm judge.least.fluency=9 -> judge.least.fluency=9 must be a whole number from 1 to 5
generate judge=llm judge.least.fluensy=3 -> (did you mean 'judge.least.fluency'?)
generate judge=llm +judge.least.tone=3 -> judge.least needs a bound for each of fluency
generate judge=llm judge.keep_unscored=no -> judge.keep_unscored='no' must be true or false
generate judge=llm judge.llm.timeout=0 -> judge.llm.timeout=0 must be a number more than 0
generate judge=llm judge.llm.temperature=hot -> judge.llm.temperature='hot' must be a number of 0 or more
generate judge=llm judge.prompt=hello$x -> judge.prompt: $x is unknown
generate counterparts=llm counterparts.attempts=0 -> counterparts.attempts=0 must be a whole number of 1 or more
generate counterparts=llm counterparts.llm.max_tokens=0 -> counterparts.llm.max_tokens=0 must be a whole number
generate strategy.num_terms=0 -> strategy.num_terms=0 must be a whole number of 1 or more
generate strategy.terms_per_call=x -> strategy.terms_per_call='x' must be a whole number of 1 or more
generate strategy.scenes_per_call=-1 -> strategy.scenes_per_call=-1 must be a whole number of 0 or more
generate strategy.calls_per_wave=0 -> strategy.calls_per_wave=0 must be a whole number of 1 or more
generate strategy.terms=[] -> strategy.terms is empty
generate strategy.scenes=5 -> strategy.scenes=5 must be a list
generate strategy=loss_guided strategy.side=left -> choose high or low
doctor none.jsonl -> none.jsonl: cannot read this file
doctor own.jsonl leakage=no -> leakage='no' must be true or false
doctor own.jsonl bias=[a] -> bias=['a'] must be text
export adapter.path=none merge=true -> none is not an adapter folder
export adapter.path=none merge=perhaps -> merge='perhaps' must be true or false
export adapter.path=none private=no repo=a/b -> private='no' must be true or false
export adapter.path=none overwrite=off merge=true -> overwrite='off' must be true or false
"""
# What is missing is told before a benchmark is read, for which some of these ask by default.
NEEDS = """
generate -> there is no API key; set OPENAI_API_KEY in the environment
generate preview=3 -> there is no API key; set OPENAI_API_KEY in the environment
generate llm=anthropic -> set ANTHROPIC_API_KEY in the environment (llm.api_key_env=null sends none)
generate llm=[local,openai] -> set OPENAI_API_KEY in the environment (llm.others.openai.api_key_env=null sends none)
generate llm=local judge=llm judge.llm=openai -> OPENAI_API_KEY in the environment (judge.llm.api_key_env=null
generate llm=local counterparts=llm counterparts.llm=gemini -> set GEMINI_API_KEY in the environment
generate llm=compatible llm.model=m llm.base_url=example.org -> llm.base_url=example.org must be an address such as
generate llm=local generate.against=[none.jsonl] -> none.jsonl: cannot read this file
generate llm=local counterparts=none.jsonl -> none.jsonl: cannot read this file
generate llm=local strategy=loss_guided strategy.start=none.jsonl -> none.jsonl: cannot read this file
run data=generated -> there is no API key; set OPENAI_API_KEY in the environment
"""
# Data and benchmarks.
DATA = """
run eval=[] -> eval is empty: name at least one benchmark
run eval=[stereoset,stereoset] -> eval=[...] names stereoset more than once
run eval.stereoset.limit=few -> eval.stereoset.limit='few' must be a whole number of 1 or more, or null
run eval.stereoset.limit=0 -> eval.stereoset.limit=0 must be a whole number of 1 or more, or null
run eval.stereoset.limit=-3 -> eval.stereoset.limit=-3 must be a whole number of 1 or more, or null
run eval.stereoset.whole=[gendre] -> eval.stereoset.whole: there is no bias 'gendre' (did you mean 'gender'?)
run eval.stereoset.whole=gendre -> there is no bias 'gendre' (did you mean 'gender'?)
run eval.crows_pairs.whole=[gendre] -> eval.crows_pairs.whole: there is no bias 'gendre' (did you mean 'gender'?)
run eval.stereoset.split=train -> eval.stereoset.split='train' is unknown; choose dev or test
run eval.stereoset.path=none.json -> none.json is not a StereoSet file
run eval.stereoset.protocol=conditional -> must be a config with _target_
run +eval.stereoset.task=both -> choose intrasentence or intersentence
run +eval.stereoset.n_resamples=0 -> must be a whole number of 1 or more
run eval.perplexity.window=0 -> eval.perplexity.window=0 must be a whole number of 1 or more, or null
run eval=[perplexity] eval.perplexity.path=none.txt -> check eval.perplexity.path
run eval.protocols=bias_bench -> must be a list such as [bias_bench,conditional], all or null
run eval.protocols=[bais_bench] -> (did you mean 'bias_bench'?)
run eval=[bbq] eval.bbq.categories=[Agee] -> eval.bbq.categories: 'Agee' is unknown; choose from: Age
run eval=[glue] eval.glue.tasks=[sst3] -> eval.glue.tasks: 'sst3' is unknown; choose from: sst2
run eval=[glue_finetuned] eval.glue_finetuned.classifier.lr=0 -> must be a number more than 0
run eval=[seat] eval.seat.biases=[age] -> eval.seat.biases: 'age' is unknown; choose from: gender
run eval=[pronoun_gap] eval.pronoun_gap.split=train -> choose dev or test
run eval=[pairs] -> eval.pairs.path must be set: add eval.pairs.path=VALUE
run eval=[pairs] eval.pairs.path=none.csv -> none.csv
run eval=[pairs] eval.pairs.path=own.jsonl -> own.jsonl
run eval=[pairs] eval.pairs.path=own.jsonl eval.pairs.limit=0 -> must be a whole number of 1 or more, or null
run eval=[pairs] eval.pairs.path=own.jsonl eval.pairs.more=[a] -> eval.pairs.more=['a'] must be text or null
run eval=[pronoun_gap] +eval.pronoun_gap.n_resamples=0 -> must be a whole number of 1 or more
run eval=[honest] -> HONEST needs HurtLex: set eval.honest.lexicon
run protocol=conditional protocol.unit=word -> protocol.unit='word' is unknown; choose token or text
run protocol=conditional protocol.ties=2 -> must be a number from 0 to 1
run data=[targeted,targeted] -> data=[...] names targeted more than once
run data=[targeted,general] -> data=targeted and data=general are the same text: set data.bias=gender
run data.n=x -> data.n='x' must be a whole number of 1 or more, or null
run data.n=0 -> data.n=0 must be a whole number of 1 or more, or null
run data.n=1e3 -> must be a whole number of 1 or more, or null
run data.match=equal -> data.match='equal' is unknown; choose examples, steps, tokens or null
run data.match_to=0 -> data.match_to=0 must be a whole number of 1 or more
run data.weights=3 -> data.weights=3 must be a mapping such as {NAME: VALUE} or null
run data.weights={general:1} -> data.weights must name the sources
run data.weights={targeted:0} -> data.weights.targeted=0 must be a number more than 0
run data.policy=lax -> data.policy='lax' is unknown; choose strict or as_published
run data.path=none.jsonl data.bias=age -> none.jsonl: cannot read this file (No such file or directory)
run data.path=none.jsonl -> add data.bias=gender or another bias
run data.bias=height -> there is no corpus of ours for data.bias='height'
run data.bias=[gender,race] -> data.bias=['gender', 'race'] must be text
run data=cda data.bias=age -> choose one of: gender, race, religion
run data=cda data.sources.cda.sides=both -> choose two, one or none
run data=paper data.sources.paper.file=4S -> choose 1S, 2S or 3S
run data=panda data.sources.panda.categories=[Martian] -> PANDA has no category 'Martian'; choose among
run data=generated generate.n=abc -> generate.n='abc' must be a whole number of 1 or more
run data=generated generate.dry_run=true -> generate.dry_run=true works only in `debias generate`
run data=generated llm.temperature=hot -> llm.temperature='hot' must be a number of 0 or more
evaluate adapter.path=none eval=[crows_pairs] -> none is not an adapter folder
evaluate adapter.combine=stack eval=[crows_pairs] -> adapter.combine needs several adapters
evaluate adapter.weights=[1,2] eval=[crows_pairs] -> adapter.weights belong to an average
"""
# The parts of a training, told before the model is loaded.
PARTS = """
run adapter.r=0 -> adapter.r=0 must be a whole number of 1 or more
run adapter.r=x -> adapter.r='x' must be a whole number of 1 or more
run adapter.lora_dropout=2 -> adapter.lora_dropout=2 must be a number from 0 to 1
run adapter.lora_alpha=0 -> adapter.lora_alpha=0 must be a number more than 0
run adapter.target_modules=[] -> adapter.target_modules is empty; name modules
run adapter.target_modules=all-linar -> (did you mean 'all-linear'?)
run adapter.train_head=maybe -> adapter.train_head='maybe' must be true or false
run +adapter.bias=some -> adapter.bias='some' is unknown
run adapter=bottleneck adapter.non_linearity=rellu -> adapter.non_linearity='rellu' is not an activation
run adapter=bottleneck adapter.reduction_factor=0 -> must be a number of 1 or more
run adapter=prefix adapter.num_virtual_tokens=0 -> must be a whole number of 1 or more
run adapter=adalora adapter.tinit=-1 -> must be a number of 0 or more
run adapter=vera adapter.d_initial=x -> adapter.d_initial='x' must be a number
run adapter._target_=peft.LoraCnfig -> peft.LoraCnfig cannot be imported
run adapter._target_=nothing.at.all -> check its name and PYTHONPATH
run objective=bounded objective.margin=0 -> objective.margin=0 must be a number more than 0 or null
run objective.alone.margin=0 -> objective.alone.margin=0 must be a number more than 0 or null
run objective=preference objective.beta=0 -> objective.beta=0 must be a number more than 0
run objective=preference_margin objective.by=inf -> objective.by=inf must be a number
run objective=language_model objective.share=2 -> must be a number more than 0 and at most 1
run balance=none +balance.size=3 -> unknown key 'balance.size'; balance takes no settings
run balance.share=2 -> balance.share=2 must be a number more than 0 and at most 1
run neutral=own neutral.n=0 -> neutral.n=0 must be a whole number of 1 or more
run neutral.causal.seed=-1 -> neutral.causal.seed=-1 must be a whole number from 0
run neutral=wikipedia neutral.longest=long -> neutral.longest='long' must be a whole number
run model.kind=sequence -> model.kind='sequence' is unknown; choose causal, masked or null
run model.quantization=3bit -> choose 4bit, 8bit or null
run model.dtype=fp64 -> choose auto, float32 or bf16
run trainer=gpu -> trainer=cpu works everywhere
run trainer.devices=many -> trainer=cpu works everywhere
run trainer.precision=64 -> choose 32-true, bf16-mixed or 16-mixed
run trainer.accumulate_grad_batches=0 -> must be a whole number of 1 or more
run trainer.gradient_clip_val=-1 -> must be a number more than 0 or null
run +trainer.max_tme=3 -> unexpected keyword argument 'max_tme'
run logger=wandb logger.mode=offlin -> (did you mean 'offline'?)
run logger=wandb logger.adapter=perhaps -> logger.adapter='perhaps' must be true or false
"""
CASES = [tuple(line.split(" -> ")) for line in "".join([WORDS, VALUES, NEEDS, DATA, PARTS]).splitlines() if line]
SLOW = {line.split(" -> ")[0] for line in (DATA + PARTS).splitlines()}  # they read data, or import torch and PEFT


def complaint(shown: Shown) -> str:
    """The error line of a failed command, after checking that there is nothing else."""
    assert shown.status == 1
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    return line


def files(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize(("command", "answer"), [
    pytest.param(*case, id=case[0], marks=[pytest.mark.slow] * (case[0] in SLOW)) for case in CASES
])  # fmt: skip
def test_one_line_and_no_change(
    debias: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, answer: str
) -> None:
    for late in ("load", "tokens"):
        monkeypatch.setattr(BaseModel, late, lambda _: pytest.fail("the model was loaded"))
    monkeypatch.setattr(leakage, "benchmark_index", lambda _: pytest.fail("a benchmark was read"))
    for name in (name for name in os.environ if name.endswith("_API_KEY")):
        monkeypatch.delenv(name)
    (tmp_path / "own.jsonl").write_text('["A man wept.", "man", "wept"]\n')
    before = files(tmp_path)
    words = shlex.split(command)
    if command in PARTS:
        words.append("eval=[crows_pairs]")  # the smallest to read
    assert answer in complaint(debias(*words))
    assert files(tmp_path) == before


def test_a_name_that_is_too_long_for_a_folder(debias: Run, tmp_path: Path) -> None:
    """90 Chinese characters are 270 bytes; file systems take 255."""
    told = complaint(debias("evaluate", "eval=[crows_pairs]", f"name={'字' * 90}"))
    assert told == f"error: {'字' * 40}... is longer than file systems allow; choose a shorter name"
    assert not list((tmp_path / "outputs").iterdir())


def test_there_are_many() -> None:
    assert len(CASES) > 120
    assert len({command for command, _ in CASES}) == len(CASES)
