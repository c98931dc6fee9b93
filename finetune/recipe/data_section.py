"""The keys of the recipe's `data` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from finetune.recipe.data_files import one_character
from finetune.recipe.section import Auto, Count, Section, Seed, Share, require_one_source

Files = Annotated[list[str], Field(min_length=1)]
_MIN_WINDOW = 16  # tokens of a window: fewer leave no space for two texts and the special tokens


class DataSection(Section):
    """Where the rows come from (a data set, files, or rows in the recipe), and which columns are used."""

    dataset_name: str | None = Field(
        None, description="The dataset: an id on the hub, or a folder of data files; null reads files or rows instead."
    )
    dataset_config_name: str | None = Field(
        None, description="Configuration (subset) of the dataset; null uses its default configuration."
    )
    dataset_revision: str | None = Field(
        None, description="Branch, tag or commit of a dataset on the hub; null uses its main branch."
    )
    train_split: str = Field(
        "train", description="Split of the dataset for training, such as train or train[:10%]; by default train."
    )
    validation_split: str | None = Field(
        "validation",
        description="Split of the dataset for validation; null uses none. If there is no split validation, rows are "
        "held out as validation_size says.",
    )
    test_split: str | None = Field(
        None, description="Split of the dataset for the final test; null, the default, uses none."
    )
    train_file: str | Files | None = Field(
        None,
        description="The training rows: a file (csv, tsv, txt, json, jsonl, parquet, arrow, also compressed), a folder,"
        " a pattern such as data/*.csv, or a list of these; null reads a dataset or rows instead.",
    )
    validation_file: str | Files | None = Field(
        None, description="The validation rows, given in the same ways; null uses none."
    )
    test_file: str | Files | None = Field(None, description="The test rows, given in the same ways; null uses none.")
    delimiter: str | None = Field(
        None,
        description="What separates the cells of csv, tsv and txt files: one character, or tab; null takes a tab for "
        "tsv, and otherwise what the header shows: a comma, a semicolon, a tab or |.",
    )
    train_rows: list[dict[str, object]] | None = Field(
        None,
        description="The training rows, written in the recipe as a list of mappings from column to value; null "
        "reads a dataset or files instead.",
    )
    validation_rows: list[dict[str, object]] | None = Field(
        None, description="The validation rows, written in the recipe; null uses none."
    )
    test_rows: list[dict[str, object]] | None = Field(
        None, description="The test rows, written in the recipe; null uses none."
    )
    validation_size: Share | Auto | None = Field(
        "auto",
        description="Fraction of the training rows that is held out for validation, between 0 and 1; auto holds out "
        "0.2 of fewer than 1,000 rows and 0.1 of more if there are no other validation rows, and null holds out none.",
    )
    group_equal_texts: bool = Field(
        True,
        description="Whether rows with the same text stay on one side when validation rows are held out; case, "
        "punctuation and white space are ignored.",
    )
    text_column: str = Field("sentence", description="Column of the text; by default sentence.")
    text_pair_column: str | None = Field(
        None, description="Column of the second text, for pairs; null reads one text per row."
    )
    label_column: str = Field(
        "label", description="Column of the label, the set of labels, or the number; by default label."
    )
    label_columns: Annotated[list[str], Field(min_length=2)] | None = Field(
        None,
        description="Columns with 0 and 1 (or false and true), one per label and named like it, for several labels per "
        "row; null reads label_column instead.",
    )
    label_delimiter: str | None = Field(
        "auto",
        description="What separates several labels in one cell, such as ; in a;b. auto chooses among ; | and the comma,"
        " and null does not split cells; a JSON list in a cell is read in any case.",
    )
    drop_unlabeled: bool = Field(
        False,
        description="Whether rows without a label are skipped (an empty cell, or -1 unless -1 is a label name); by "
        "default they are an error.",
    )
    label_name_rows: Literal["auto"] | bool = Field(
        "auto",
        description="Whether the name of each label is also a training row; auto adds the names of 10 labels or more "
        "if all are words and there are at most 20 training rows per label.",
    )
    max_length: Annotated[int, Field(ge=4)] = Field(
        128, description="Maximum number of tokens that the model reads at a time; see long_text for longer rows."
    )
    long_text: Literal["truncate", "head_tail", "window"] = Field(
        "truncate",
        description="How rows longer than max_length are read: truncate keeps the first tokens, head_tail the first "
        "quarter and the last three quarters, window reads all in overlapping windows.",
    )
    window_stride: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Number of tokens that two windows share, at most half of max_length; null is a quarter of it.",
    )
    window_pooling: Literal["mean", "max"] = Field(
        "max", description="How the logits of a row's windows become one: their mean, or the maximum per label."
    )
    max_windows: Count = Field(
        16, description="Maximum number of windows per row; the rest of a longer row is not read."
    )
    max_train_samples: Count | None = Field(
        None, description="Maximum number of training rows, drawn at random; null uses all rows."
    )
    max_eval_samples: Count | None = Field(
        None, description="Maximum number of validation rows and of test rows, drawn at random; null uses all rows."
    )
    split_seed: Seed | None = Field(
        None,
        description="Seed of what depends on the rows alone: held-out rows, sampled rows, linear probe and baselines; "
        "null, the default, uses seed.",
    )

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, delimiter: str | None) -> str | None:
        return None if delimiter is None else one_character(delimiter)

    @field_validator("label_delimiter")
    @classmethod
    def _check_label_delimiter(cls, delimiter: str | None) -> str | None:
        if delimiter == "":
            raise ValueError("label_delimiter is empty; give a text such as ;, or null")
        return delimiter

    @model_validator(mode="after")
    def _check_sources_and_columns(self) -> DataSection:
        require_one_source("data", self)
        columns = [*self.text_columns(), *(self.label_columns or [self.label_column])]
        if len(set(columns)) < len(columns):
            raise ValueError(f"text and label columns must differ, got {', '.join(columns)}")
        if self.label_columns and self.label_column in self.text_columns():
            raise ValueError(f"label_column and a text column are both '{self.label_column}'; set another label_column")
        if self.validation_size not in ("auto", None) and (self.validation_file or self.validation_rows):
            raise ValueError("validation_size holds out training rows, but validation rows are given; remove one")
        self._check_windows()
        return self

    def _check_windows(self) -> None:
        """Raise ValueError for keys of windows that cannot be used, or have no effect."""
        if self.long_text != "window":
            fields = type(self).model_fields
            for key in ("window_stride", "window_pooling", "max_windows"):
                if getattr(self, key) != fields[key].default:
                    raise ValueError(f"{key} applies only to long_text: window, and long_text is {self.long_text}")
        elif self.max_length < _MIN_WINDOW:
            raise ValueError(f"long_text: window needs max_length of at least {_MIN_WINDOW}, got {self.max_length}")
        elif self.window_stride is not None and self.window_stride > self.max_length // 2:
            raise ValueError(
                f"window_stride is {self.window_stride}; two windows share at most half of max_length, "
                f"{self.max_length // 2} tokens"
            )

    def text_columns(self) -> list[str]:
        """Return the one or two columns that the model reads."""
        return [self.text_column, *([self.text_pair_column] if self.text_pair_column else [])]

    def local_files(self) -> dict[str, list[str]]:
        """Return split name -> files, folders and patterns as in the recipe, for the splits that are files."""
        given = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: [files] if isinstance(files, str) else list(files) for split, files in given.items() if files}
