# A bash context: reads lines from its standard input, made by `bash_cells`, and answers on descriptor 3, as `frames` says.
#
# bash --noprofile --noediting --rcfile bash.sh -i
#
# An interactive bash that is interrupted drops the line it is at and reads the next one.
PS1='' PS2='' PROMPT_COMMAND=''
set +m +H +o history
unset HISTFILE

__roost_number=1
__roost_open=
__roost_saved=()

__roost_send() {
  printf '%s %d\n%s' "$1" "${#2}" "$2" >&3
}

# Before a cell: its variables, each as NAME=VALUE.
__roost_begin() {
  local pair name
  __roost_saved=()
  __roost_open=yes
  for pair; do
    name=${pair%%=*}
    if [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]]; then
      if [[ -v $name ]]; then __roost_saved+=("$name=${!name}"); else __roost_saved+=("$name"); fi
    fi
    export "$pair"
  done
}

# After a cell: a status other than 0 is an error, without a name, as E2B has it. Called twice, as an interrupt may hit
# the first call.
__roost_finish() {
  local status=$? each
  [[ -n $__roost_open ]] || return 0
  for each in "${__roost_saved[@]}"; do
    if [[ $each == *=* ]]; then export "$each"; else unset "$each"; fi
  done
  __roost_open=
  ((__roost_number += 1))
  if ((status)); then
    __roost_send E "{\"type\": \"error\", \"name\": \"\", \"value\": \"$status\", \"traceback\": \"\"}"
  fi
  __roost_send D "{\"next\": $__roost_number}"
}

__roost_send Y '{"next": 1}'
