from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import jsonargparse
import pytest
import torch
from cloud_sets import sphere, write_anomaly_shapenet, write_real3d_ad
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from anomaly3d.data.anomaly_shapenet import AnomalyShapeNet, index_anomaly_shapenet
from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.data.folder import CloudFolder
from anomaly3d.data.pcd import write_pcd
from anomaly3d.data.real3d_ad import Real3DAD
from anomaly3d.errors import InputError
from anomaly3d.types import PointCloudBatch


class Probe(LightningModule):
    """Notes which clouds each hook sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[str]] = {"fit": [], "validate": [], "test": [], "predict": []}

    def _note(self, stage: str, batch: PointCloudBatch) -> torch.Tensor:
        assert isinstance(batch, PointCloudBatch)
        self.seen[stage] += batch.sample_id
        return self.weight * batch.xyz.mean()

    def training_step(self, batch, index):
        return self._note("fit", batch)

    def validation_step(self, batch, index):
        self._note("validate", batch)

    def test_step(self, batch, index):
        self._note("test", batch)

    def predict_step(self, batch, index):
        self._note("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**kwargs) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **kwargs,
    )


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_nothing_is_held_out_for_a_validation_that_there_is_not(tmp_path: Path) -> None:
    one = index_anomaly_shapenet(write_anomaly_shapenet(tmp_path), ("train",))[0]
    records = [replace(one, name=str(i), source=str(i)) for i in range(12)]
    for wanted, left in ((1, 10), (0, 12)):
        data = AnomalyShapeNet(tmp_path, ["cap0"], val_normal=wanted, val_defective=wanted)
        data.index = lambda split: records
        assert len(data.records("train")) == left


def test_lightning_runs_all_four_verbs(tmp_path: Path) -> None:
    module = AnomalyShapeNet(write_anomaly_shapenet(tmp_path), batch_size=3, eval_batch_size=2, val_points=600)
    probe = Probe()
    runner = trainer()
    runner.fit(probe, datamodule=module)
    runner.test(probe, datamodule=module, verbose=False)
    runner.predict(probe, datamodule=module)
    assert sorted(probe.seen["fit"]) == [f"{c}/train/{c}_template{i}" for c in ("cap0", "cup1") for i in range(2)]
    assert len(probe.seen["validate"]) == len(set(probe.seen["validate"])) == 12
    assert probe.seen["test"] == probe.seen["predict"] == [record.sample_id for record in module.records("test")]
    assert len(probe.seen["test"]) == 8


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize(("write", "make"), [(write_anomaly_shapenet, AnomalyShapeNet), (write_real3d_ad, Real3DAD)])
def test_fit_and_validate_need_no_test_folder(tmp_path: Path, write, make) -> None:
    """The validation clouds are the same ones with the test folder deleted."""
    root = write(tmp_path)
    # The tests' templates are small; a single view of them is too small for a defect.
    options = {"val_view": "full", "val_points": 600}
    module = make(root, **options)
    module.setup("validate")
    before = [batch.xyz for batch in module.val_dataloader()]
    for folder in [*root.rglob("test"), *root.rglob("GT"), *root.rglob("gt")]:
        shutil.rmtree(folder)
    module, probe = make(root, **options), Probe()
    trainer().fit(probe, datamodule=module)
    trainer().validate(probe, datamodule=module, verbose=False)
    assert probe.seen["fit"]
    assert probe.seen["validate"]
    after = [batch.xyz for batch in module.val_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(InputError, match="no test clouds"):
        make(root).setup("test")


def test_test_clouds_alone_can_be_tested(tmp_path: Path) -> None:
    root = write_anomaly_shapenet(tmp_path)
    for folder in root.rglob("train"):
        shutil.rmtree(folder)
    module = AnomalyShapeNet(root)
    module.setup("test")
    assert module.category_names == ("cap0", "cup1")
    assert len(list(module.test_dataloader())) == 8
    with pytest.raises(InputError, match="no train clouds for cap0, cup1"):
        AnomalyShapeNet(root).setup("fit")


def test_cut_and_copied_scans_have_the_source_of_their_scan(tmp_path: Path) -> None:
    data = Real3DAD(write_real3d_ad(tmp_path / "set"))
    data.setup("fit")
    assert data.sources() == {}
    data.setup("test")
    sources = data.sources()
    assert len(sources) == 10
    assert sources["duck/test/65_bulge"] == sources["duck/test/65_bulge_cut"] != sources["duck/test/66_sink"]
    assert len(set(sources.values())) == 7


def test_names_stay_where_a_category_has_no_test_clouds(tmp_path: Path) -> None:
    root = write_anomaly_shapenet(tmp_path)
    shutil.rmtree(root / "cap0" / "test")
    module = AnomalyShapeNet(root)
    with pytest.warns(UserWarning, match="no test clouds for cap0"):
        module.setup("test")
    assert module.category_names == ("cap0", "cup1")
    assert {batch.category.item() for batch in module.test_dataloader()} == {1}


def test_categories(tmp_path: Path) -> None:
    root = write_anomaly_shapenet(tmp_path, ("cap0", "cup1", "jar0"))
    module = AnomalyShapeNet(root, categories=["jar0", "cap0"])
    module.setup(None)
    assert module.category_names == ("cap0", "jar0")
    assert {batch.category.item() for batch in module.test_dataloader()} == {0, 1}
    for unknown in (["jar"], "jar"):
        with pytest.raises(InputError, match=r"categories: jar not in .*Known categories: cap0, cup1, jar0"):
            AnomalyShapeNet(root, categories=unknown).setup("fit")
    one = AnomalyShapeNet(root, categories="jar0")
    one.setup(None)
    assert one.category_names == ("jar0",)


def test_shuffling_follows_the_seed(tmp_path: Path) -> None:
    module = AnomalyShapeNet(write_anomaly_shapenet(tmp_path, ("a0", "b0", "c0")))
    module.setup("fit")

    def order(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return [batch.sample_id[0] for batch in module.train_dataloader()]

    assert order(1) == order(1)
    assert sorted(order(1)) == sorted(order(2))
    assert order(1) != order(2)


@pytest.mark.slow
def test_workers_give_the_same_clouds(tmp_path: Path) -> None:
    root = write_anomaly_shapenet(tmp_path)
    batches = []
    for workers in (0, 2):
        module = AnomalyShapeNet(root, num_workers=workers, val_points=600)
        module.setup(None)
        batches.append([*module.val_dataloader(), *module.test_dataloader()])
    for one, other in zip(*batches, strict=True):
        assert one.sample_id == other.sample_id
        assert torch.equal(one.xyz, other.xyz)
        assert torch.equal(one.mask, other.mask)


@pytest.mark.slow
def test_errors_of_workers_are_input_errors(tmp_path: Path) -> None:
    root = write_anomaly_shapenet(tmp_path)
    module = AnomalyShapeNet(root, num_workers=1)
    module.setup("test")
    module.records("test")[0].path.write_bytes(b"")
    with pytest.raises(InputError, match="empty file"):
        next(iter(module.test_dataloader()))


def test_no_validation_if_it_is_to_be_empty(tmp_path: Path) -> None:
    module = AnomalyShapeNet(write_anomaly_shapenet(tmp_path), val_normal=0, val_defective=0)
    module.setup("fit")
    assert module.val_dataloader() == []


def test_held_out_clouds_are_not_trained_on(tmp_path: Path, rng) -> None:
    (tmp_path / "train").mkdir()
    for i in range(12):
        write_pcd(tmp_path / "train" / f"{i}.pcd", sphere(rng))
    module = CloudFolder(tmp_path, val_fraction=0.25)
    module.setup("fit")
    train, held = ({record.name or record.path.stem for record in module.records(s)} for s in ("train", "val"))
    assert (len(train), len(held), train & held) == (9, 3, set())


@pytest.mark.parametrize("nested", ["", "batch7/left"])
def test_predict_path_takes_clouds_without_labels(tmp_path: Path, rng, nested: str) -> None:
    incoming = tmp_path / "incoming"
    (incoming / nested).mkdir(parents=True)
    for name in ("a", "b"):
        write_pcd(incoming / nested / f"{name}.pcd", sphere(rng))
    # The data set itself need not be there.
    module = AnomalyShapeNet(tmp_path / "set", predict_path=incoming)
    module.setup("predict")
    batches = list(module.predict_dataloader())
    prefix = f"incoming/test/{nested}/" if nested else "incoming/test/"
    assert [batch.sample_id[0] for batch in batches] == [f"{prefix}a", f"{prefix}b"]
    assert all(batch.category is batch.label is batch.mask is None for batch in batches)
    single = AnomalyShapeNet(tmp_path / "set", predict_path=incoming / nested / "b.pcd")
    single.setup("predict")
    assert [record.path.stem for record in single.records("predict")] == ["b"]


def test_predict_path_leaves_out_ground_truth_and_hidden_folders(tmp_path: Path, rng) -> None:
    for name in ("part/test/good/a.pcd", "__MACOSX/a.pcd", ".cache/a.pcd"):
        (tmp_path / name).parent.mkdir(parents=True)
        write_pcd(tmp_path / name, sphere(rng))
    (tmp_path / "part/GT/dent").mkdir(parents=True)
    (tmp_path / "part/GT/dent/a.txt").write_text("0\n1\n")
    module = AnomalyShapeNet(tmp_path / "set", predict_path=tmp_path)
    with pytest.warns(UserWarning, match=r"left out are 1 files of ground truth, .*GT/dent/a\.txt"):
        module.setup("predict")
    assert [record.path for record in module.records("predict")] == [tmp_path / "part/test/good/a.pcd"]


def test_predict_path_without_clouds(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with pytest.raises(InputError, match=r"predict_path: .*nowhere"):
        AnomalyShapeNet(root, predict_path=tmp_path / "nowhere").setup("predict")


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"num_workers": -1}, {"val_fraction": 1.0}, {"cache_gb": -1.0}, {"val_points": 3}]
)
def test_wrong_settings_are_named(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}: "):
        AnomalyShapeNet(tmp_path, **wrong)


@pytest.mark.parametrize("make", [AnomalyShapeNet, Real3DAD, CloudFolder])
def test_arguments_are_config_keys(tmp_path: Path, make: type[PointCloudDataModule]) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PointCloudDataModule, "data")
    name = f"{make.__module__}.{make.__name__}"
    for categories, expected in (("all", "all"), ("[a, b]", ["a", "b"])):
        values = [
            f"--data={name}",
            f"--data.root={tmp_path}",
            f"--data.categories={categories}",
            "--data.val_view=full",
        ]
        module = parser.instantiate_classes(parser.parse_args(values))["data"]
        assert isinstance(module, make)
        assert module.categories == expected
        assert module.view_settings.view == "full"
    if make is Real3DAD:
        module = parser.instantiate_classes(parser.parse_args(values[:2]))["data"]
        assert (module.view_settings.view, module.view_settings.rotation) == ("single", 180.0)


def test_loaders_are_dataloaders(tmp_path: Path) -> None:
    module = AnomalyShapeNet(write_anomaly_shapenet(tmp_path))
    module.setup(None)
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        assert isinstance(loader, DataLoader)


def test_processes_share_the_test_clouds_out_without_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = AnomalyShapeNet(write_anomaly_shapenet(tmp_path))
    data.setup("test")
    count = len(data.records("test"))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)

    def shares(processes: int) -> list[list[int]]:
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: processes)
        found = []
        for rank in range(processes):
            monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
            found.append(list(data.test_dataloader().sampler))
        return found

    for processes in (2, 3, count):
        assert sorted(index for share in shares(processes) for index in share) == list(range(count))
    # Fewer clouds than processes: Lightning's sampler, which repeats some so that every process has one.
    assert all(share == list(range(count)) for share in shares(count + 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_goes_on_with_the_same_clouds_and_draws_whoever_reads_them(tmp_path, workers):
    write_anomaly_shapenet(tmp_path)

    def loader():
        data = AnomalyShapeNet(tmp_path, num_workers=workers, val_normal=0, val_defective=0)
        data.setup("fit")
        return data.train_dataloader()

    def epoch(clouds):
        return [batch.sample_id for batch in clouds], torch.rand(3).tolist()

    torch.manual_seed(3)
    clouds = loader()
    first, state = epoch(clouds), torch.get_rng_state()
    second = epoch(clouds)
    assert first[0] != second[0]  # shuffled anew
    torch.set_rng_state(state)  # as behind a stop
    assert epoch(loader()) == second
