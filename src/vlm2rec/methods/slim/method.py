"""SLIM (Wang et al., WWW 2024): a small model learns a teacher's reasoning about histories; what it says is embedded.

SLIM embeds rationales and items by a small text encoder, SLIM+ by the distilled model itself.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from vlm2rec.backbones.load import load_backbone, towers
from vlm2rec.backbones.packing import Prompt
from vlm2rec.backbones.recompute import recompute
from vlm2rec.backbones.small import TextEncoder
from vlm2rec.config import SLIM as Settings
from vlm2rec.config import BackboneConfig, Config
from vlm2rec.damage import damage
from vlm2rec.data.splits import Split, Which, sample_users
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encode import in_shards
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.methods.base import ADAPTED, Embedder, need_pictures, need_titles, validation_users
from vlm2rec.methods.slim.answers import Writer, collect, key_of
from vlm2rec.methods.slim.distillation import Example, distillation_step, label
from vlm2rec.methods.slim.fusion import FusedItems
from vlm2rec.methods.slim.prompts import Question, Shelf, history_at, steps, student_question, teacher_question
from vlm2rec.methods.slim.teachers import FileTeacher, ModelTeacher, Teacher, TemplateTeacher, ask
from vlm2rec.prompts import Text
from vlm2rec.runs import Run
from vlm2rec.seqrec.items import Items, Norm, Phase
from vlm2rec.tasks import Cosine, Scorer
from vlm2rec.training.loop import fit

_AT_ONCE = 64


class SLIM(Embedder):
    """Teacher's rationales of some users, a student tuned on them, and the student's rationales of everyone needed."""

    kept: ClassVar[Mapping[str, Sequence[str]]] = {
        **Embedder.kept,
        "encode": (*Embedder.kept["encode"], "rationales", "stages/rationales-*"),
    }

    def __init__(self, config: Config, split: Split) -> None:
        super().__init__(config, split)
        self.shelf = Shelf(split.dataset)
        self.learners = np.flatnonzero(split.train.lengths >= 2)
        """Users with something before their last training event."""
        self._student: Encoder | None = None
        self._teacher: Teacher | None = None
        self._text_encoder: TextEncoder | None = None

    @property
    def leaves(self) -> Mapping[str, Sequence[str]]:
        """The student's adapters, and the vectors."""
        return {**super().leaves, "train": ADAPTED}

    @property
    def settings(self) -> Settings:
        """The method's own numbers."""
        assert isinstance(self.config.method, Settings)
        return self.config.method

    @property
    def sees(self) -> bool:
        """Whether prompts show pictures."""
        return self.settings.modality == "multimodal"

    def check(self, trained: bool) -> None:
        """Data, encoder, teacher and student, and the longest prompts against the backbones' contexts."""
        settings, seqrec = self.settings, self.config.seqrec
        need_titles(self.split, "method.kind = 'slim' needs")
        if self.sees:
            need_pictures(self.split, "method.modality = 'multimodal' needs; set method.modality=text instead")
        if seqrec.backbones and settings.task2 == "fusion" and seqrec.table == "tuned":
            raise InputError(
                "seqrec.table = 'tuned': method.task2 = 'fusion' trains ids beside vectors that stay as they are; set"
                " seqrec.table=frozen or method.task2=init_only"
            )
        if settings.encoder == "bert":
            self._load_text_encoder()
        if trained:
            return
        if not len(self.learners):
            raise InputError(f"{self.split.dataset.path}: no user has two training events, so nothing can be trained")
        self._student = self._build(self.config.backbone)
        writer = Writer(self._student, self.shelf, settings.max_new_tokens)
        writer.check(self.questions(self.split.able("test"), "test"))
        self._teacher = self._build_teacher(self._student)
        self._teacher.check(self.questions(self.labelled(), "train", teacher_question))

    def labelled(self) -> np.ndarray:
        """The users whose rationale the teacher gives: the same for every seed, since answers may cost money."""
        config = self.config
        pool = self.learners[sample_users(len(self.learners), config.training.users, config.seed, "training")]
        return pool[sample_users(len(pool), self.settings.teacher_users, config.evaluation.candidate_seed, "teacher")]

    def questions(
        self, users: np.ndarray, phase: Phase, ask: Callable[[Shelf, Sequence[int], bool], Question] = student_question
    ) -> list[Question]:
        """Prompts about the histories that users have in a phase."""
        return [ask(self.shelf, history_at(self.split, int(user), phase), self.sees) for user in users]

    def train(self, run: Run) -> Mapping[str, Any]:
        """Ask the teacher (`teacher.jsonl`), then tune the student on what it said; adapters to `model/`."""
        assert self._student is not None
        began = time.monotonic()
        student, settings, config = self._student, self.settings, self.config
        examples, teacher = self._taught(run, student)
        taken = time.monotonic() - began
        student.add_lora(settings.lora, config.seed)
        recompute(student.backbone, config.training.gradient_checkpointing)
        run.record(trainable=towers(student.backbone.model))
        state = fit(
            student,
            distillation_step(student.backbone, examples, config),
            steps_per_epoch=-(-len(examples) // settings.batch_size),
            settings=config.training.model_copy(
                update={"epochs": settings.epochs, "batch_size": settings.batch_size, "lr": settings.lr}
            ),
            seed=config.seed,
            folder=run.path,
            title=f"slim seed {config.seed}",
        )
        student.save(run.path / "model")
        return {"steps": state.step, "seconds": taken + state.seconds, "users": len(examples), "teacher": teacher}

    def encode(self, run: Run, users: np.ndarray) -> Mapping[str, Any]:
        """Items to `items/`; the test users' rationales to `rationales/test.jsonl`, their vectors to `histories/`."""
        began = time.monotonic()
        said = self.rationales(run, users, "test")
        if damage(run.path / "items"):
            ids, items = self.split.dataset.item_ids, range(self.split.n_items)
            manifest = {"encoder": self.settings.encoder, "modality": self.settings.modality}
            in_shards(items, ids, self._items(run), run.path / "items", "items", _AT_ONCE, manifest)
        self._embed(run, users, said, run.path / "histories")
        without = sum(steps(text) is None for text in said)
        return {"seconds": time.monotonic() - began, "rationales": len(said), "without_steps": without}

    def scorer(self, run: Run, users: np.ndarray, which: Which) -> Scorer:
        """Cosines of rationale and item (Task 1); for validation, with rationales of the validation histories."""
        if which == "test":
            return super().scorer(run, users, which)
        items = self.item_table(run.path / "items")
        return Cosine(self.vectors(run, users, which).unit("fused"), items.unit("fused"))

    def sequence_items(self, run: Run, norm: Norm) -> Items:
        """Text and ids joined, for items and users; `task2 = "init_only"`: item vectors behind a linear adapter."""
        if self.settings.task2 == "init_only":
            return super().sequence_items(run, norm)
        items, histories = self.item_table(run.path / "items"), EmbeddingTable.load(run.path / "histories")
        row = {name: number for number, name in enumerate(self.split.dataset.user_ids)}
        tested = np.array([row[str(name)] for name in histories.ids])
        found: dict[Phase, tuple[np.ndarray, np.ndarray]] = {"test": (tested, histories["fused"])}
        for phase, users in self._fitted().items():
            found[phase] = (users, self.vectors(run, users, phase)["fused"])
        return FusedItems(items["fused"], found, self.split.n_users, self.config.seqrec.dim, norm)

    def sequence_task(self, run: Run, users: np.ndarray) -> dict[str, Any]:
        """Every backbone of `seqrec.backbones`; the rationales that fusion needs are made before."""
        if self.config.seqrec.backbones and self.settings.task2 == "fusion":
            for phase, needed in self._fitted().items():
                self.vectors(run, needed, phase)
            self._student = None  # it has said everything, and the sequential models want its memory
        return super().sequence_task(run, users)

    def rationales(self, run: Run, users: np.ndarray, phase: Phase) -> list[str]:
        """The student's rationales of the histories that users have in a phase, kept at `rationales/PHASE.jsonl`.

        Each is known by its user and its very prompt, so none can stand for another history.
        """
        questions, ids = self.questions(users, phase), self._ids(users)
        keys = [key_of(name, question.text) for name, question in zip(ids, questions, strict=True)]
        return collect(
            run.path / "rationales" / f"{phase}.jsonl",
            keys,
            lambda wanted: Writer(self.student(run), self.shelf, self.settings.max_new_tokens)(questions, wanted),
            lambda number: {"user_id": ids[number]},
            f"rationales, {phase}",
        )

    def vectors(self, run: Run, users: np.ndarray, phase: Phase) -> EmbeddingTable:
        """Vectors of the users' rationales of a phase, kept under `stages/`."""
        digest = key_of(*self._ids(users))[:16]
        out = run.path / "stages" / f"rationales-{phase}-{digest}"
        return self._embed(run, users, self.rationales(run, users, phase), out)

    def student(self, run: Run) -> Encoder:
        """The distilled model with its language head."""
        if self._student is None:
            self._student = Encoder.load(run.path / "model", head=True)
        return self._student.eval()

    def _fitted(self) -> dict[Phase, np.ndarray]:
        """Whose rationales a sequential model needs before it is tested."""
        return {"train": self.learners, "validation": validation_users(self.config, self.split, None)}

    def _taught(self, run: Run, student: Encoder) -> tuple[list[Example], dict[str, Any]]:
        """What the student is to learn, and what the manifest keeps of the teacher, who is needed no more."""
        assert self._teacher is not None
        users, most = self.labelled(), self.settings.max_new_tokens
        asked = self.questions(users, "train", teacher_question)
        answered = ask(self._teacher, asked, self.shelf, run.path / "teacher.jsonl")
        kept = {"name": self._teacher.name, "asked": len(asked), "rejected": answered.rejected}
        self._teacher = None  # it may be a large model
        prompts = Writer(student, self.shelf, most).read(self.questions(users, "train"))
        labels = [label(student.backbone, text, most) for text in answered.rationales]
        return [Example(prompt, said) for prompt, said in zip(prompts, labels, strict=True)], kept

    def _embed(self, run: Run, users: np.ndarray, texts: Sequence[str], out: Path) -> EmbeddingTable:
        """A table of rationale vectors at `out`, unless it stands there already."""
        if not damage(out):
            return EmbeddingTable.load(out)
        return in_shards(texts, self._ids(users), self._texts(run), out, "rationale vectors", _AT_ONCE)

    def _texts(self, run: Run) -> Callable[[Sequence[str]], Mapping[str, Tensor]]:
        if self.settings.encoder == "bert":
            encoder = self._load_text_encoder()
            return lambda texts: {"fused": encoder(texts)}
        student = self.student(run)
        before, after = student.backbone.wrapper(self.config.prompt.chat)
        after = [*student.backbone.tokens("\n" + self.config.prompt.closing), *after]

        def read(text: str) -> Prompt:
            said = student.backbone.title_tokens(text)[: self.settings.max_new_tokens]
            return Prompt([*before, *said, *after], [])

        return lambda texts: {"fused": student([read(text) for text in texts])}

    def _items(self, run: Run) -> Callable[[Sequence[int]], Mapping[str, Tensor]]:
        if self.settings.encoder == "bert":
            encoder = self._load_text_encoder()
            return lambda items: {"fused": encoder([self.shelf.text(item) for item in items])}
        student, closing = self.student(run), Text("\n" + self.config.prompt.closing)

        def embed(items: Sequence[int]) -> Mapping[str, Tensor]:
            student.look_at(self.shelf, items)
            return {"fused": student([student.read([*self.shelf.segments(i, self.sees), closing]) for i in items])}

        return embed

    def _load_text_encoder(self) -> TextEncoder:
        if self._text_encoder is None:
            self._text_encoder = TextEncoder(self.settings.text_encoder, self.settings.pooling)
        return self._text_encoder

    def _build(self, backbone: BackboneConfig) -> Encoder:
        """An encoder with its language head."""
        loaded = load_backbone(backbone, head=True)
        if self.sees and loaded.vision is None:
            raise InputError(
                f"backbone.path = {backbone.path!r} reads no pictures, but method.modality = 'multimodal'; take a"
                " vision-language model, or set method.modality=text"
            )
        seen = {"modalities": "both" if self.sees else "text", "combine": "sum"}  # one pass: nothing to combine
        prompt = self.config.prompt.model_copy(update=seen)
        return Encoder(loaded, backbone, prompt, self.config.evaluation.batch_tokens)

    def _build_teacher(self, student: Encoder) -> Teacher:
        settings, path = self.settings, self.settings.teacher_path
        if settings.teacher == "template":
            return TemplateTeacher(self.shelf)
        if settings.teacher == "file":
            if path is None:
                raise InputError("method.teacher = 'file' needs method.teacher_path, a JSON-lines file of answers")
            return FileTeacher(Path(path), settings.teacher_model)
        encoder = student
        if path is not None:
            try:
                encoder = self._build(self.config.backbone.model_copy(update={"path": path}))
            except InputError as error:
                raise InputError(str(error).replace("backbone.path", "method.teacher_path")) from None
        return ModelTeacher(encoder.settings.path, Writer(encoder, self.shelf, settings.max_new_tokens))

    def _ids(self, users: np.ndarray) -> list[str]:
        return [self.split.dataset.user_ids[int(user)] for user in users]
