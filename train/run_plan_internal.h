/* A plan under way. Private to train/run_plan.c (bytes of one candidate) and train/run_choose.c (which one). */
#ifndef NIBBLE_TRAIN_RUN_PLAN_INTERNAL_H
#define NIBBLE_TRAIN_RUN_PLAN_INTERNAL_H

#include "train/run_plan.h"

typedef struct PlanInput {
    const Config *config;
    const ModelConfig *model;
    const WeightFacts *facts;
    const Backend *backend;
    int threads, ranks;
    ModelShape shape;
    DType act;
    int has_base;
    WeightOptions base;
    WeightFormat *formats; /* of the base's weights */
} PlanInput;

/* Plans with the recompute, stashed_layers and places that are in *plan. */
Status plan_candidate(PlanInput *in, RunPlan *plan, Error *err);
/* Decides those, and says so in plan->choice. Where nothing fits, *plan is the most frugal. */
Status plan_choose(PlanInput *in, size_t available, HostUse most, RunPlan *plan, Error *err);

#endif
