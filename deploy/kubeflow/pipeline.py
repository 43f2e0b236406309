"""A pipeline of Kubeflow: apply, materialize, look at the monitors, and train where an alarm is new.

    pip install 'kfp[kubernetes]>=2.14,<3'
    python pipeline.py --image registry.example/features:2026-11-26 pipeline.yaml

compiles it; upload the file, and let Kubeflow run it each hour. What it needs in the namespace of the runs:

- the image: featurestore with the extras client and mlflow, what train.py imports, and the feature repo at /repo, whose
  feature_store.yaml names the registry by its URL;
- a secret `featurestore`, with the keys `editor`, `operator` (tokens of the project), and `served` (the servers'
  secret, where join keys are hashed). No step gets more than it needs, and the compiled file holds none of them;
- a volume claim `featurestore` with the offline store, which the steps see at /repo/data.

train.py is your own: it trains, calls training.log_to_mlflow() and store.register_model(), and moves the alias.
"""

import argparse

from kfp import compiler, dsl, kubernetes

REPO = "/repo"
NAME = "featurestore"
"""The name of the secret and of the volume claim."""
OPERATOR = {"operator": "FS_REGISTRY_TOKEN"}
"""A key of the secret, and the variable in which a step finds it."""

# Exit code 3 is an alarm. The command of --on-alarm runs once for each: an alarm that stays trains no second time.
MONITOR = """\
mkdir -p "$(dirname "$1")" && printf rest >"$1"
DECISION=$1 fs monitor --repo "$0" --cooldown 1d --on-alarm 'printf train >"$DECISION"'
code=$?
[ "$code" = 3 ] || exit "$code"
"""


def made(image: str):
    """Return the pipeline whose steps run in an image."""

    @dsl.container_component
    def apply(message: str):
        """Apply the definitions in the image; what would break a reader fails here."""
        return dsl.ContainerSpec(image, ["fs"], ["apply", "--yes", "--repo", REPO, "--message", message])

    @dsl.container_component
    def materialize():
        """Bring new rows into the offline and the online store; running it again is safe."""
        return dsl.ContainerSpec(image, ["fs"], ["materialize", "--repo", REPO])

    @dsl.container_component
    def monitor(decision: dsl.OutputPath(str)):
        """Compare what is served with its baselines; `train` for a new alarm, else `rest`."""
        return dsl.ContainerSpec(image, ["sh", "-c", MONITOR], [REPO, decision])

    @dsl.container_component
    def train(service: str, model: str, tracking_uri: str):
        """Train with the service, and log the model."""
        return dsl.ContainerSpec(
            image,
            ["python", f"{REPO}/train.py"],
            ["--service", service, "--model", model, "--tracking-uri", tracking_uri],
        )

    def placed(task: dsl.PipelineTask, keys: dict[str, str]) -> dsl.PipelineTask:
        kubernetes.use_secret_as_env(task, secret_name=NAME, secret_key_to_env=keys)
        kubernetes.mount_pvc(task, pvc_name=NAME, mount_path=f"{REPO}/data")
        return task.set_caching_options(False)  # the same command does something else each hour

    @dsl.pipeline(name="features", description="Apply, materialize, monitor; train where an alarm is new.")
    def features(
        service: str = "trip_model_v1",
        model: str = "tips",
        tracking_uri: str = "http://mlflow.mlflow:5000",
        message: str = "by the pipeline",
    ):
        applied = placed(apply(message=message), {"editor": "FS_REGISTRY_TOKEN"})
        filled = placed(materialize(), OPERATOR).after(applied).set_retry(2)
        watched = placed(monitor(), OPERATOR | {"served": "FS_SERVED__SECRET"}).after(filled)
        with dsl.If(watched.outputs["decision"] == "train", name="alarm"):
            placed(train(service=service, model=model, tracking_uri=tracking_uri), OPERATOR)

    return features


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", required=True, help="The image in which each step runs.")
    parser.add_argument("out", help="The YAML file to write.")
    given = parser.parse_args()
    compiler.Compiler().compile(made(given.image), given.out)
