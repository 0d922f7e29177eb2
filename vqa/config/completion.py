"""What `vqa --completion` prints: a bash function that completes groups, options, keys, stages and studies.

Hydra has a completion of its own, which starts Python at every Tab. This one is a list, made once.
"""

from vqa.config.near import known_words
from vqa.config.place import CONF
from vqa.config.stages import STAGES

SCRIPT = r"""# put this into ~/.bashrc: eval "$(vqa --completion)"
_vqa_completion() {
    local word="${COMP_LINE:0:COMP_POINT}" words folder
    word="${word##* }"
    words="WORDS"
    if [[ $word == study=* ]]; then
        words=""
        for folder in "${VQA_OUTPUT:-multirun}"/*/; do
            [[ -d $folder ]] && words+=$'\n'"study=$(basename "$folder")"
        done
    fi
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [[ ${#COMPREPLY[@]} == 0 ]]; then compopt -o default; return; fi
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    # bash takes = for a word of its own: only what stands after it is replaced
    if [[ $word == *=* && $COMP_WORDBREAKS == *"="* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
    fi
}
complete -F _vqa_completion vqa"""


def completion() -> str:
    """The function as text, for `eval`."""
    options = sorted(_options())
    chosen = {option.partition("=")[0] for option in options}
    keys = [f"{word}=" for word in known_words() if word not in chosen and "/" not in word]
    stages = [*STAGES, *(f"stage={stage}" for stage in STAGES)]
    return SCRIPT.replace("WORDS", "\n".join([*stages, *options, *keys, "--help", "--completion"]))


def _options() -> set[str]:
    """Every `group=option`; a sweep or an experiment is added with + in front."""
    found = set()
    for file in CONF.rglob("*.yaml"):
        group = file.parent.relative_to(CONF).as_posix()
        if group not in (".", "hydra/help"):
            found.add(f"{'+' if group == 'sweep' else ''}{group}={file.stem}")
    return found
