# Completes se3-uploader in bash; the package puts it where bash looks for it.
_se3_uploader() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} words=
    case $before in
        -c | --config | --dir) mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    esac
    case $COMP_CWORD:${COMP_WORDS[1]} in
        1:*) words="run backfill check status outbox source receive demo --version" ;;
        2:outbox) words="list show retry discard" ;;
        2:source) words="inspect" ;;
        *:run) words="--config --once" ;;
        *:backfill)
            words="--config --since --until --endpoint --rate --resend --pictures --dry-run --json"
            [ "$before" = --pictures ] && words="keep strip"
            ;;
        *:check) words="--config --no-network --show-payload" ;;
        *:status) words="--config --json" ;;
        *:outbox)
            words="--config --endpoint --reason --since --until"
            case ${COMP_WORDS[2]} in
                list) words+=" --json" ;;
                show) words+=" --json --payload" ;;
                retry) words+=" --yes" ;;
                discard) words+=" --yes --person" ;;
            esac
            ;;
        *:source) words="--config" ;;
        *:receive) words="--host --port --dir --fail --delay --status" ;;
        *:demo) words="--events --port" ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -F _se3_uploader se3-uploader
