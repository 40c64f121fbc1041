//! Stand-ins to link with in place of NVIDIA's libraries: each function looks for the real one when it is called first.
//!
//! A program that is linked with the real libraries does not start on a machine that lacks one of them. With these it starts
//! everywhere, and a library that is missing is an error of the function that was called.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::compiler::write;

/// A library of NVIDIA's.
pub(super) struct Library {
    /// Name by which it is linked.
    pub(super) name: &'static str,
    /// Module of cudarc that declares its functions.
    pub(super) module: &'static str,
    /// Beginning of the names of its functions.
    pub(super) prefix: &'static str,
    /// Names of its file, in the order in which they are looked for.
    pub(super) files: &'static [&'static str],
    /// Status that its functions return if it is missing.
    pub(super) missing: u32,
}

/// The libraries that a program with the features `cuda` and `nccl` calls.
pub(super) const LIBRARIES: [Library; 6] = [
    // CUDA_ERROR_NO_DEVICE
    Library { name: "cuda", module: "driver", prefix: "cu", files: &["libcuda.so.1", "libcuda.so"], missing: 100 },
    // CUBLAS_STATUS_NOT_INITIALIZED
    Library {
        name: "cublas",
        module: "cublas",
        prefix: "cublas",
        files: &["libcublas.so.13", "libcublas.so.12"],
        missing: 1,
    },
    Library {
        name: "cublasLt",
        module: "cublaslt",
        prefix: "cublasLt",
        files: &["libcublasLt.so.13", "libcublasLt.so.12"],
        missing: 1,
    },
    // CURAND_STATUS_NOT_INITIALIZED
    Library { name: "curand", module: "curand", prefix: "curand", files: &["libcurand.so.10"], missing: 101 },
    // NVRTC_ERROR_INTERNAL_ERROR
    Library {
        name: "nvrtc",
        module: "nvrtc",
        prefix: "nvrtc",
        files: &["libnvrtc.so.13", "libnvrtc.so.12"],
        missing: 11,
    },
    // ncclSystemError
    Library { name: "nccl", module: "nccl", prefix: "nccl", files: &["libnccl.so.2"], missing: 2 },
];

/// Functions that return a text instead of a status.
fn returns_text(function: &str) -> bool {
    let is_of_driver = function.starts_with("cuGet");
    let endings = ["ErrorString", "StatusString", "StatusName", "GetLastError"];
    !is_of_driver && endings.iter().any(|ending| function.ends_with(ending))
}

/// Builds the stand-ins of all libraries in `folder`, by the declarations in the source of cudarc.
pub(super) fn build(folder: &Path, cudarc: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for library in &LIBRARIES {
        let sys = cudarc.join("src").join(library.module).join("sys");
        let functions = declared(&sys, library.prefix)?;
        ensure!(!functions.is_empty(), "{} declares no function of {}", sys.display(), library.name);
        library.build(folder, &functions)?;
    }
    // Only the kernels that are left out would call it.
    archive(folder, "cudart", &[])
}

/// Lists the functions that the files of a module declare.
fn declared(folder: &Path, prefix: &str) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let function = |line: &str| {
                let name = line.split("fn ").nth(1)?.split('(').next()?.trim();
                let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                (is_name && name.starts_with(prefix)).then(|| name.to_owned())
            };
            names.extend(text.lines().filter_map(function));
        }
    }
    Ok(names)
}

impl Library {
    /// Builds the stand-in, `lib<name>.a`, in `folder`.
    pub(super) fn build(&self, folder: &Path, functions: &BTreeSet<String>) -> Result<()> {
        let name = self.name;
        write(&folder.join(format!("{name}.c")), &self.resolver(functions))?;
        write(&folder.join(format!("{name}.s")), &self.jumps(functions))?;
        let mut objects = vec![];
        for ending in ["c", "s"] {
            let object = format!("{name}-{ending}.o");
            let mut cc = Command::new("cc");
            cc.current_dir(folder).args(["-c", "-O2", "-fPIC", "-o", &object, &format!("{name}.{ending}")]);
            let status = cc.status().context("cannot start cc, the C compiler")?;
            ensure!(status.success(), "{name}.{ending} does not compile ({status})");
            objects.push(object);
        }
        archive(folder, name, &objects)
    }

    /// Writes, in C, what finds a function by its number: the real one, or one that returns the status of a missing library.
    fn resolver(&self, functions: &BTreeSet<String>) -> String {
        let Self { name, files, missing, .. } = self;
        let quoted =
            |names: &mut dyn Iterator<Item = &str>| names.map(|it| format!("\"{it}\", ")).collect::<Vec<_>>().concat();
        let count = functions.len();
        let texts: String = functions.iter().map(|it| if returns_text(it) { "1, " } else { "0, " }).collect();
        format!(
            "#include <dlfcn.h>\n#include <stddef.h>\n\
             static const char *const files[] = {{{files}NULL}};\n\
             static const char *const names[] = {{{names}}};\n\
             static const char texts[] = {{{texts}}};\n\
             __attribute__((visibility(\"hidden\"))) void *slots_{name}[{count}];\n\
             static int status(void) {{ return {missing}; }}\n\
             static const char *text(void) {{ return \"the library {name} is missing\"; }}\n\
             __attribute__((visibility(\"hidden\"))) void *resolve_{name}(long i) {{\n\
             static void *library;\n\
             for (const char *const *file = files; !library && *file; file++) library = dlopen(*file, RTLD_NOW);\n\
             void *found = library ? dlsym(library, names[i]) : NULL;\n\
             if (!found) found = texts[i] ? (void *)text : (void *)status;\n\
             slots_{name}[i] = found;\n\
             return found;\n}}\n",
            files = quoted(&mut files.iter().copied()),
            names = quoted(&mut functions.iter().map(String::as_str)),
        )
    }

    /// Writes, in assembly, one function for each that jumps to the real one, whatever its arguments; the first call finds it.
    fn jumps(&self, functions: &BTreeSet<String>) -> String {
        let name = self.name;
        // Integers in rdi to r9, floats in xmm0 to xmm7, the rest on the stack, which stays as it is.
        let integers = ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "rax", "r10"];
        let mut text = format!(".text\n.Lfind:\n{}", integers.map(|it| format!("  pushq %{it}\n")).concat());
        text += "  subq $128, %rsp\n";
        let floats = [0, 1, 2, 3, 4, 5, 6, 7];
        text += &floats.map(|i| format!("  movups %xmm{i}, {}(%rsp)\n", 16 * i)).concat();
        let _ = write!(text, "  movq 192(%rsp), %rdi\n  call resolve_{name}\n  movq %rax, %r11\n");
        text += &floats.map(|i| format!("  movups {}(%rsp), %xmm{i}\n", 16 * i)).concat();
        text += "  addq $128, %rsp\n";
        text += &integers.iter().rev().map(|it| format!("  popq %{it}\n")).collect::<Vec<_>>().concat();
        text += "  addq $8, %rsp\n  jmp *%r11\n";
        for (i, function) in functions.iter().enumerate() {
            let _ = write!(
                text,
                ".globl {function}\n.type {function}, @function\n{function}:\n  \
                 movq slots_{name}+{}(%rip), %r11\n  testq %r11, %r11\n  jz 1f\n  jmp *%r11\n\
                 1:\n  pushq ${i}\n  jmp .Lfind\n.size {function}, .-{function}\n",
                8 * i
            );
        }
        text + ".section .note.GNU-stack,\"\",@progbits\n"
    }
}

/// Builds the archive of some objects.
fn archive(folder: &Path, name: &str, objects: &[String]) -> Result<()> {
    let mut ar = Command::new("ar");
    ar.current_dir(folder).arg("rcs").arg(format!("lib{name}.a")).args(objects);
    let status = ar.status().context("cannot start ar")?;
    ensure!(status.success(), "lib{name}.a cannot be built ({status})");
    Ok(())
}

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests {
    use super::*;

    const REAL: &str = "
        double probeMix(int a, double b, long c, long d, long e, long f, long g, long h, float i, long j) {
            return a + b + c + d + e + f + g + h + i + j;
        }
        int probeOne(void) { return 1; }";
    const PROGRAM: &str = "
        #include <stdio.h>
        double probeMix(int, double, long, long, long, long, long, long, float, long);
        int probeOne(void); int probeTwo(void); const char *probeGetErrorString(int);
        int main(void) {
            for (int i = 0; i < 2; i++) printf(\"%d %d \", probeOne(), probeTwo());
            if (probeOne() == 1) for (int i = 0; i < 2; i++) printf(\"%g \", probeMix(1, .5, 2, 3, 4, 5, 6, 7, .25f, 8));
            printf(\"%.11s\", probeTwo() == 77 ? probeGetErrorString(3) : \"\");
        }";

    #[test]
    fn a_program_starts_without_a_library_and_calls_it_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let library =
            Library { name: "probe", module: "", prefix: "probe", files: &["libprobe-real.so.1"], missing: 77 };
        let functions = ["probeMix", "probeOne", "probeTwo", "probeGetErrorString"].map(str::to_owned);
        library.build(folder.path(), &functions.into_iter().collect()).unwrap();
        fs::write(folder.path().join("real.c"), REAL).unwrap();
        fs::write(folder.path().join("program.c"), PROGRAM).unwrap();
        let cc = |args: &[&str]| {
            assert!(Command::new("cc").current_dir(folder.path()).args(args).status().unwrap().success());
        };
        cc(&["-o", "program", "program.c", "-L.", "-lprobe", "-ldl"]);
        let said = || {
            let program = folder.path().join("program");
            let output = Command::new(program).env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(said(), "77 77 77 77 the library");
        cc(&["-shared", "-fPIC", "-o", "libprobe-real.so.1", "real.c"]);
        assert_eq!(said(), "1 77 1 77 36.75 36.75 the library");
    }

    #[test]
    fn functions_are_found_where_they_are_declared() {
        let folder = tempfile::tempdir().unwrap();
        let text = "unsafe extern \"C\" {\n    pub fn cuInit(Flags: c_uint) -> CUresult;\n    pub fn cuGetErrorName(\n        e: u32);\n}\nfn check(x: u8) {}\n";
        fs::write(folder.path().join("mod.rs"), text).unwrap();
        let names = declared(folder.path(), "cu").unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["cuGetErrorName", "cuInit"]);
        assert!(returns_text("nvrtcGetErrorString") && !returns_text("cuGetErrorString") && !returns_text("cuInit"));
    }
}
