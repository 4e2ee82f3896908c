from collections.abc import Callable

import pytest

from medalign.eval.clusters import cluster_records, clustered_by
from medalign.pipeline.manifest import Record

MakeRecord = Callable[..., Record]


@pytest.fixture
def of() -> Callable[..., Record]:
    def make(image: str | None, *more: str, **fields: object) -> Record:
        images = () if image is None else (image, *more)
        return Record(
            id=f"{image}{fields}",
            images=images,
            conversations=(),
            answer_type=None,
            fields=fields,
            line=1,
        )

    return make


def test_questions_about_one_image_are_a_cluster(of: MakeRecord) -> None:
    assert cluster_records([of("a"), of("b"), of("a")]).tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", ["patient", "patient_id", "subject_id"])
def test_images_of_one_patient_are_a_cluster(of: MakeRecord, name: str) -> None:
    records = [of("a", **{name: 7}), of("b", **{name: "7"}), of("c", **{name: "8"})]
    assert cluster_records(records).tolist() == [0, 0, 1]


def test_an_image_belongs_to_the_patient_that_another_record_names(of: MakeRecord) -> None:
    records = [of("a"), of("b", patient="7"), of("a", patient="7"), of("c")]
    assert cluster_records(records).tolist() == [0, 0, 0, 1]


def test_records_that_share_an_image_are_a_cluster(of: MakeRecord) -> None:
    assert cluster_records([of("a", "b"), of("a")]).tolist() == [0, 0]
    assert cluster_records([of("b"), of("a", "b")]).tolist() == [0, 0]
    # "a" and "c" hang together by way of the third record.
    records = [of("a"), of("c", "d"), of("b", "c"), of("e"), of("a", "b")]
    assert cluster_records(records).tolist() == [0, 0, 0, 1, 0]


def test_spellings_of_a_path_are_one_image(of: MakeRecord) -> None:
    records = [of("x/a.png"), of("./x/a.png"), of("x//a.png"), of("x/y/../a.png"), of("a.png")]
    assert cluster_records(records).tolist() == [0, 0, 0, 0, 1]


def test_images_of_a_cluster_belong_to_the_patient_of_any_of_them(of: MakeRecord) -> None:
    records = [of("a", "b"), of("./b", patient="7"), of("a"), of("c", patient="7")]
    assert cluster_records(records).tolist() == [0, 0, 0, 0]


def test_a_patient_called_like_an_image_is_none(of: MakeRecord) -> None:
    assert cluster_records([of("a"), of("b", patient="a")]).tolist() == [0, 1]


def test_a_record_without_image_is_alone(of: MakeRecord) -> None:
    assert cluster_records([of(None, n=1), of(None, n=2)]).tolist() == [0, 1]
    assert cluster_records([of(None, n=1, patient=7), of("a", patient=7)]).tolist() == [0, 0]


def test_what_clusters_are_is_said(of: MakeRecord) -> None:
    named, plain = of("a", patient="7"), of("b")
    assert clustered_by([named]) == "patient"
    assert clustered_by([plain]) == "image"
    assert clustered_by([named, plain]) == "patient where known, else image"
    assert clustered_by([of("a", patient=" ")]) == "image"
