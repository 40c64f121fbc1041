# Stands in for nvcc where Candle's build script calls it; see compiler.rs.
output=''; folder=''; source=''; previous=''; mode=''
for argument; do
    case "$previous" in
        -o) output=$argument ;;
        --output-directory) folder=$argument ;;
    esac
    case "$argument" in
        --version) echo 'Cuda compilation tools, release 13.0, V13.0.88'; exit 0 ;;
        --list-gpu-code) echo sm_80; exit 0 ;;
        --ptx | -c | --lib) mode=$argument ;;
        *.cu) source=$argument ;;
    esac
    previous=$argument
done
name=$(basename "$source" .cu)
case "$mode" in
    --lib)
        shift 3
        rm -f "$output"
        exec ar rcs "$output" "$@"
        ;;
    -c)
        # All of these are kernels for quantized weights; one file has the functions of all.
        case "$name" in
            mmvq_gguf) exec cc -c -fPIC -o "$output" "$here/quantized.c" ;;
            *) exec cc -c -fPIC -x c -o "$output" /dev/null ;;
        esac
        ;;
    --ptx)
        if [ -z "$nvcc" ] || [ "$name" = quantized ]; then
            exec cp "$here/empty.ptx" "$folder/$name.ptx"
        fi
        ;;
esac
exec "$nvcc" "$@"
