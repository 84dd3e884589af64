#!/bin/sh
# The include gate: who may include whom (docs/tour.md, "The house"). Prints every wrong include.
set -eu
cd "$(dirname "$0")/.."
bad=0
# forbid FOLDER PATTERN WHY
forbid() {
    if grep -rnE "#include *[\"<]($2)" "$1" --include='*.[ch]' --include='*.cc' --include='*.cu' --include='*.cuh'; then
        echo "  ^ $1 may not include that: $3"
        bad=1
    fi
}
[ ! -d config ] || forbid config '(server|engine|kernels|tokenizer|compress)/' 'config is the floor'
forbid kernels '(server|engine|tokenizer|compress)/' 'kernels stand on config alone'
forbid tokenizer '(server|engine|kernels|compress)/' 'tokenizer stands on config alone'
forbid engine '(server|tokenizer|compress)/' 'the engine knows ids, no text'
forbid engine 'kernels/(cpu/|cuda|train)' 'the engine sees kernels/kernels.h alone'
forbid server 'kernels/|compress/' 'the server sees the engine'
forbid server 'engine/[^er]|engine/e[^n]|engine/r[^e]' 'of the engine the server sees engine.h and request.h'
forbid compress 'server/' 'the tool is not a server'
forbid client '(server|engine|kernels|tokenizer|compress)/' 'the client stands on config alone'
for d in config kernels tokenizer engine server; do
    forbid "$d" 'client/' 'the client is the tool'"'"'s'
done
for d in config server engine tokenizer compress client kernels/cpu; do
    forbid "$d" 'cuda_runtime|cublas' 'CUDA stays in kernels/cuda and kernels/cuda_train'
done
exit $bad
