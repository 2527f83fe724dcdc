import pytest

from anomaly3d.data.released_splits import category_folder, released_counts


@pytest.mark.parametrize(
    ("dataset", "categories", "normal", "anomalous"),
    [("Anomaly-ShapeNet", 40, 600, 712), ("anomaly_shapenet", 40, 600, 712), ("Real3D-AD", 12, 604, 602)],
)
def test_totals_are_the_releases(dataset, categories, normal, anomalous):
    counts = released_counts(dataset)
    assert len(counts) == categories
    assert tuple(map(sum, zip(*counts.values(), strict=True))) == (normal, anomalous)


def test_papers_names_are_found():
    counts = released_counts("Anomaly-ShapeNet")
    assert counts[category_folder("jar")] == counts[category_folder("phone")] == counts[category_folder("cup0")]


def test_other_data_sets_are_not_known():
    assert released_counts("demo") == {}
