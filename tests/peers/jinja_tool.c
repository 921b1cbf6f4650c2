/* jinja_tool TEMPLATE VARIABLES: renders a template with the variables in a JSON file; for jinja_renders.py. */
#include <stdio.h>
#include <stdlib.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/jinja.h"

#define FILE_LIMIT ((size_t)16 << 20)

static Status render(const char *template_path, const char *variables_path, Error *err) {
    char *source = NULL, *variables = NULL;
    size_t source_length, variables_length;
    Jinja *jinja = NULL;
    JinjaRun *run = jinja_run_create(JINJA_LIMITS_DEFAULT);
    JinjaValue values;
    JinjaText out;
    Status status = OK;
    TRY_GOTO(file_read(template_path, FILE_LIMIT, &source, &source_length, err));
    TRY_GOTO(file_read(variables_path, FILE_LIMIT, &variables, &variables_length, err));
    TRY_GOTO(jinja_open(&jinja, template_path, source, source_length, err));
    TRY_GOTO(jinja_json(run, variables_path, variables, variables_length, JINJA_ORIGIN_NONE, &values, err));
    TRY_GOTO(jinja_render(jinja, run, values, &out, err));
    (void)fwrite(out.data, 1, out.length, stdout);
done:
    memory_free(source);
    memory_free(variables);
    jinja_run_free(run);
    jinja_close(jinja);
    return status;
}

int main(int argc, char **argv) {
    Error error = {0};
    if (argc == 3 && render(argv[1], argv[2], &error) == OK) return EXIT_SUCCESS;
    (void)fprintf(stderr, "%s\n", argc == 3 ? error.text : "usage: jinja_tool TEMPLATE VARIABLES");
    return EXIT_FAILURE;
}
