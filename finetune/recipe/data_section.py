"""The keys of the recipe's `data` section."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from finetune.recipe.section import Count, Section, Share, require_one_source


class DataSection(Section):
    """Where the rows come from (a data set, files, or rows in the recipe), and which columns are used."""

    dataset_name: str | None = Field(None, description="data set on the hub, or folder of data files")
    dataset_config_name: str | None = Field(None, description="configuration (subset) of the data set")
    train_split: str = Field("train", description="split of the data set for training, such as train or train[:10%]")
    validation_split: str | None = Field("validation", description="split of the data set for validation; null: none")
    test_split: str | None = Field(None, description="split of the data set for the final test; null: none")
    train_file: str | None = Field(None, description="training rows: csv, tsv, json, jsonl or parquet file")
    validation_file: str | None = Field(None, description="validation rows: a file of the same formats")
    test_file: str | None = Field(None, description="test rows: a file of the same formats")
    train_rows: list[dict[str, object]] | None = Field(
        None, description="training rows written in the recipe: a list of mappings from column to value"
    )
    validation_rows: list[dict[str, object]] | None = Field(None, description="validation rows written in the recipe")
    test_rows: list[dict[str, object]] | None = Field(None, description="test rows written in the recipe")
    validation_size: Share | None = Field(
        None, description="fraction of the training rows to hold out for validation, between 0 and 1"
    )
    text_column: str = Field("sentence", description="column of the text")
    text_pair_column: str | None = Field(None, description="column of the second text; null: one text per row")
    label_column: str = Field("label", description="column of the label, the list of labels, or the number")
    drop_unlabeled: bool = Field(
        False, description="true: skip rows without a label (an empty cell, or -1 unless -1 is a label name)"
    )
    max_length: Annotated[int, Field(ge=4)] = Field(
        128, description="maximum number of tokens per row; longer rows are truncated"
    )
    max_train_samples: Count | None = Field(
        None, description="maximum number of training rows, drawn at random; null: all"
    )
    max_eval_samples: Count | None = Field(
        None, description="maximum number of validation and of test rows, drawn at random; null: all"
    )

    @model_validator(mode="after")
    def _check_sources_and_columns(self) -> DataSection:
        require_one_source("data", self)
        columns = [*self.text_columns(), self.label_column]
        if len(set(columns)) < len(columns):
            raise ValueError(f"text and label columns must differ, got {', '.join(columns)}")
        if self.validation_size and (self.validation_file or self.validation_rows):
            raise ValueError("validation_size holds out training rows, but validation rows are given; remove one")
        return self

    def text_columns(self) -> list[str]:
        """Return the one or two columns that the model reads."""
        return [self.text_column, *([self.text_pair_column] if self.text_pair_column else [])]

    def local_files(self) -> dict[str, str]:
        """Return split name -> file, for the splits that are files."""
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: file for split, file in files.items() if file}
