#include "compress/wanted.h"

#include <math.h>
#include <stdio.h>

#include "compress/search.h"

/* What goes less than this of the way to its fine-tune answers like neither model and is refused;
 * less than the next is worth a word; the last is what one would rather have. */
static const double least_kept = 0.25, fair_kept = 0.75, good_kept = 0.9;

void made_free(struct made *m) {
    tenant_writer_abort(m->w);
    json_decref(m->made);
    json_decref(m->quality);
    *m = (struct made){0};
}

static err_t attempt(const struct job_base *base, const struct checkpoint *fine,
                     const struct wanted *o, double bits, bool only_quality, const char *path,
                     const json_t *about, struct made *out, struct why *why) {
    struct fitted_options fitted = o->fitted;
    bool written = false;
    fitted.only_quality = only_quality;
    *out = (struct made){.made = json_deep_copy(about)};
    fitted.bits = bits;
    fitted.path = path;
    bool bad = json_object_set_new(out->made, "bits", json_real(bits)) < 0;
    if (bad)
        return why_set(why, E_NOMEM, "not enough memory");
    err_t e = tenant_writer_open(&out->w, path, why);
    e = e ? e
          : fitted_write(base, fine, &fitted, out->w, &out->report, out->made, &out->quality,
                         &written, why);
    if (!written) {
        tenant_writer_abort(out->w);
        out->w = NULL;
    }
    double kept = report_kept(out->quality);
    if (!e && isfinite(kept))
        json_object_set_new(out->quality, "kept", json_real(kept));
    return e;
}

/* What it is and what it would take: "..., not the 95 % asked for; about 2.3 bits would go 95 %".
 */
static void explain(const char *fine, const struct search *s, const char *verdict, char *out,
                    size_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < s->n; i++)
        best = s->bits[i] > s->bits[best] ? i : best;
    double bits = search_estimate(s, s->target);
    char would[96];
    if (bits > MAX_PLANES)
        snprintf(would, sizeof would, "more than %d bits would be needed", MAX_PLANES);
    else
        snprintf(would, sizeof would, "about %.1f bits would go %.4g %% (--bits %.1f)", bits,
                 100 * s->target, bits);
    snprintf(out, n,
             "%s changed too much for %.3g bits a weight: they go %.1f %% of the way from the base "
             "to it%s; %s",
             fine, s->bits[best], 100 * s->kept[best], verdict, would);
}

/* A tenant of the bits that were asked for. */
static err_t make_once(const struct job_base *base, const struct checkpoint *fine,
                       const struct wanted *o, const char *path, const json_t *about,
                       struct made *out, struct why *why) {
    char text[400];
    err_t e = attempt(base, fine, o, o->fitted.bits, false, path, about, out, why);
    double kept = report_kept(out->quality);
    if (e || o->fitted.published || !isfinite(kept) || kept >= fair_kept)
        return e;
    struct search s = {.target = good_kept, .least = 1, .most = o->fitted.bits};
    search_add(&s, o->fitted.bits, kept);
    bool bad = kept < least_kept;
    explain(job_name_of(fine->dir), &s, bad ? ", which is nowhere (--quality 0.01 to take it)" : "",
            text, sizeof text);
    if (bad)
        return why_set(why, E_INVAL, "%s", text);
    fprintf(stderr, "Note: %s.\n", text);
    return E_OK;
}

err_t wanted_make(const struct job_base *base, const struct checkpoint *fine,
                  const struct wanted *o, const char *path, const json_t *about, struct made *out,
                  struct why *why) {
    *out = (struct made){0};
    if (o->quality <= 0)
        return make_once(base, fine, o, path, about, out, why);
    struct search s = {.target = o->quality, .least = 1, .most = o->fitted.bits};
    double bits, best = 0, first = o->first_bits < s.most ? o->first_bits : s.most;
    err_t e = E_OK;
    while (!e && search_next(&s, first, &bits)) {
        struct made now;
        e = attempt(base, fine, o, bits, true, path, about, &now, why);
        double kept = report_kept(now.quality);
        if (!e && !isfinite(kept))
            e = why_set(why, E_INTERNAL, "the fit measured no quality");
        if (!e)
            fprintf(stderr,
                    "%.2f bits a weight go %.2f %% of the way from the base to the fine-tune%s.\n",
                    bits, 100 * kept, now.w ? "" : ", as was found before");
        if (!e && search_add(&s, bits, kept)) {
            made_free(out);
            *out = now;
            best = bits;
        } else {
            made_free(&now);
        }
    }
    if (!e && best > 0 && !out->w) { /* found before an interruption: its tensors are gone */
        made_free(out);
        e = attempt(base, fine, o, best, false, path, about, out, why);
    }
    if (e || best > 0)
        return e;
    char verdict[64], text[400];
    snprintf(verdict, sizeof verdict, ", not the %.4g %% asked for", 100 * o->quality);
    explain(job_name_of(fine->dir), &s, verdict, text, sizeof text);
    return why_set(why, E_INVAL, "%s", text);
}
