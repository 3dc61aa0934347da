"""The methods of the paper's tables, one module a family. Each is imported when a run asks for it."""

from vlm2rec import config as kinds
from vlm2rec.config import Config
from vlm2rec.data.splits import Split
from vlm2rec.methods.base import Recommender


def build(config: Config, split: Split) -> Recommender:
    """The method that a configuration names: the one place that knows every kind."""
    match config.method:
        case kinds.PopRec() | kinds.ItemKNN() | kinds.Random():
            from vlm2rec.methods.counts import Counting

            return Counting(config, split)
        case kinds.Vanilla() | kinds.SFT() | kinds.VLM2Rec():
            from vlm2rec.methods.vlm import VLM

            return VLM(config, split)
        case kinds.SASRec() | kinds.GRU4Rec():
            from vlm2rec.methods.sequential import Sequential

            return Sequential(config, split)
        case kinds.Bert() | kinds.CLIP() | kinds.Pair():
            from vlm2rec.methods.frozen import Frozen

            return Frozen(config, split)
        case kinds.VLMPrompt():
            from vlm2rec.methods.vlm_prompt import VLMPrompt

            return VLMPrompt(config, split)
        case kinds.LLMEmb():
            from vlm2rec.methods.llmemb.method import LLMEmb

            return LLMEmb(config, split)
        case kinds.LLM2Rec():
            from vlm2rec.methods.llm2rec import LLM2Rec

            return LLM2Rec(config, split)
        case kinds.SLIM():
            from vlm2rec.methods.slim.method import SLIM

            return SLIM(config, split)
        case kinds.NoteLLM2():
            from vlm2rec.methods.notellm2.method import NoteLLM2

            return NoteLLM2(config, split)
        case kinds.Hybrid():
            from vlm2rec.methods.hybrid import Hybrid

            return Hybrid(config, split)
        case kinds.Transfer():
            from vlm2rec.methods.transfer import Transfer

            return Transfer(config, split)
