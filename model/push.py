"""A finished model folder -> the Hugging Face hub, by `huggingface_hub`.

Who is asking, its library knows: from `hf auth login`, or the environment's `HF_TOKEN`. The token is no flag of ours,
and never printed.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from launch import hub
from launch.args import flag, require
from launch.errors import ConfigError


@dataclass(frozen=True)
class Upload:
    """Upload to the Hugging Face hub, once the folder has passed (log in before: `hf auth login`, or HF_TOKEN)."""

    push_to_hub: str | None = flag(None, "its name there, such as me/dilbert; made if it is new", "NAME")
    private: bool = flag(False, "only for its owner")

    def __post_init__(self) -> None:
        name = self.push_to_hub
        require(name is not None or not self.private, "private", self.private, "goes with --push-to-hub")
        if name is not None:
            require(name.count("/") == 1, "push_to_hub", name, "must be OWNER/NAME")
            try:
                validate_repo_id(name)
            except HFValidationError as error:
                raise ConfigError(f"--push-to-hub {name}: {error}") from error


def push(folder: Path, name: str, private: bool, leave_out: tuple[str, ...]) -> str:
    """Upload a folder.

    Args:
        leave_out: files that stay here.

    Returns:
        where it is.

    Raises:
        ConfigError: whatever the hub or the network answers; the folder stays as it is.
    """
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        exposed = private and not api.model_info(name).private
        if not exposed:
            api.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=list(leave_out))
    except Exception as error:  # of many kinds: of the network, of the hub, of the login
        raise ConfigError(
            f"{folder} is complete, but could not be uploaded to {name}: {_plain(error)}\n"
            f"Logged in (`hf auth whoami`), and allowed to write there? Then: "
            f"python -m model.export {folder} --push-to-hub {name}{' --private' if private else ''}"
        ) from None  # its own text may hold the token
    require(not exposed, "private", private, f"{name} is there already, and public; nothing was uploaded")
    return f"{api.endpoint}/{name}"


def hub_name(name: str | None) -> str | None:
    """Today's hub name of a model that was fetched from there; None: a folder, or nothing that this machine knows."""
    if name is None or Path(name).is_dir():
        return None
    try:
        found = try_to_load_from_cache(hub.resolve(name), "config.json")
    except HFValidationError:
        return None
    return hub.resolve(name) if isinstance(found, str) else None


def _plain(error: Exception) -> str:
    """In one line, without the token, whatever a server has sent back."""
    text, token = " ".join(str(error).split()) or type(error).__name__, get_token()
    return text.replace(token, "(token)") if token else text
